"""Cases that run on every rank of a ``world.World``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from torch.distributed.device_mesh import init_device_mesh

import helpers.hand_parallel as by_hand
import pab_compile
from helpers.joint_prompts import TwoPrompts, two_prompts
from helpers.latte import (
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.world import Counter, Mesh
from pab_compile.ranks import team

PLANS: dict[str, dict[str, Any]] = {
    "computes always": {"ranges": {}},
    "before the gate": {"ranges": {"spatial": 2, "temporal": 3, "cross": 4}, "window": (0.1, 0.9)},
    "behind the gate": {
        "ranges": {"spatial": 2, "temporal": 3, "cross": 4},
        "window": (0.1, 0.9),
        "cut": "gated",
    },
    "predicted and coalesced": {
        "ranges": {"spatial": 2, "temporal": 2, "cross": 2, "mlp": 2},
        "predict": 1,
        "window": (0.1, 0.9),
        "cut": "gated",
        "coalesce": True,
    },
    "linear3": {"ranges": "linear3"},
    "with MLPs": {"ranges": {"spatial": 2, "temporal": 4, "mlp": 2}, "window": (0.1, 0.9)},
}
NUM_STEPS = 8
DEPTH = 1


def generate(
    group: dist.ProcessGroup | None,
    plan: str,
    guidance: Any,
    inner: Any = None,
    num_steps: int = NUM_STEPS,
) -> dict[str, Any]:
    """A whole generation of a tiny Latte, by one rank of several or (without a group) alone.

    Returns:
        The predictions, computations per kind, most cache bytes, and per step the number of
        all-to-alls and the bytes that this rank sent in them; all gathers likewise; and statistics.
    """
    torch._dynamo.reset()
    count = Counter(group.rank() if group else 0)
    mesh = {"mesh": Mesh(group), "shard": "t"} if group else {}
    compiled = compiled_pab(tiny_latte(DEPTH), inner=inner or count, **PLANS[plan], **mesh)
    loop = Loop(calls_of(compiled), ddim_timesteps(num_steps), guidance=guidance)
    per_step = count.per_step(loop.steps())
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "cache": stats.peak_cache_bytes,
        "pieces": stats.num_pieces,
        "per step": per_step,
        "gathers": (count.gathers, count.gathered),
        "stats": stats,
    }


def replica(group: dist.ProcessGroup | None, row: int = 0) -> torch.Tensor:
    """One of two videos at a time, each on two of four ranks, with its own latents and steps."""
    torch._dynamo.reset()
    options: dict[str, Any] = {}
    if group is not None:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("video", "sp"))
        row, options = dist.get_rank() // 2, {"mesh": mesh["sp"], "shard": "t"}
    compiled = compiled_pab(tiny_latte(DEPTH), **PLANS["before the gate"], **options)
    return Loop(calls_of(compiled), ddim_timesteps(5 + row), draw_latents(7 + row)).run()


def grid_options(group: dist.ProcessGroup, how: str) -> dict[str, Any]:
    """How ranks share the rows of the batch, and their tokens where there are four of them."""
    if how == "rows":
        return {"batch_mesh": Mesh(group)}
    if how.startswith("auto"):
        machine = pab_compile.Machine(1e9 * (1 + (how == "auto, other machines") * group.rank()))
        calls = 2 if how == "auto, two calls" else 1
        auto = pab_compile.AutoSplit(calls, machine if "machines" in how else None)
        return {"mesh": Mesh(group), "shard": auto if calls == 2 or "machines" in how else "auto"}
    if how == "counted":
        return {"sequence_parallel": 2, "batch_parallel": 2, "shard": "t"}
    assert how == "mesh"
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("cfg", "sp"))
    return {"mesh": mesh["sp"], "batch_mesh": mesh["cfg"], "shard": "t"}


def generate_rows(
    group: dist.ProcessGroup | None, plan: str, how: str, rows: int = 1, guidance: Any = "batched"
) -> dict[str, Any]:
    """A generation of a tiny Latte whose ranks share the batch.

    Returns:
        The predictions, computations per kind, most cache bytes, all-to-alls per step, bytes
        that this rank sent, the notes of ``explain``, and statistics.
    """
    torch._dynamo.reset()
    count = Counter(dist.get_rank() % 2 if group else 0)
    options = grid_options(group, how) if group else {}
    model = tiny_latte(DEPTH)
    if "several graphs" in how:
        project = model.caption_projection.forward

        def broken(*args: Any, **kwargs: Any) -> Any:
            torch._dynamo.graph_break()
            return project(*args, **kwargs)

        model.caption_projection.forward = broken
    compiled = compiled_pab(model, inner=count, **PLANS[plan], **options)
    latents, prompt = draw_latents(batch=rows), draw_prompt(batch=rows)
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), latents, prompt, guidance=guidance)
    per_step = count.per_step(loop.steps())
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "cache": stats.peak_cache_bytes,
        "per step": [num for num, _ in per_step],
        "sent": count.gathered + sum(sent for _, sent in per_step),
        "notes": pab_compile.explain(compiled).notes,
        "stats": stats,
    }


def refused_rows(group: dist.ProcessGroup, case: str) -> str:
    """The error that a rank meets when the ranks cannot share a batch."""
    guidance: Any = "none" if case == "one call" else "batched"
    model: Any = tiny_latte(depth=1)
    how = {"other meshes": "counted", "other machines": "auto, other machines"}.get(case, "rows")
    options = grid_options(group, how)
    if case == "other meshes" and group.rank() == 2:
        options = {"sequence_parallel": 4}
    elif case == "different plans":
        options |= options_of(group, case)
    elif case == "mixed":
        model = Mixing(model)
    compiled = compiled_pab(model, **options)
    return error_of(Loop(calls_of(compiled), ddim_timesteps(4), guidance=guidance))


def refused_calls(group: dist.ProcessGroup, case: str) -> str:
    """The error that a rank meets when the two calls of a step cannot be shared."""
    compiled: Any = compiled_pab(tiny_latte(DEPTH), batch_mesh=Mesh(group))
    call = calls_of(compiled)

    def changed(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor, moment: Any) -> Any:
        if case == "other latents" and moment.lane == "cond" and moment.step:
            x = x + 1
        if case == "other lengths" and moment.lane == "uncond":
            prompt = prompt[:, :3]
        if case == "another prompt" and moment.lane == "cond" and moment.step == 2:
            prompt = prompt + 1
        return call(x, t, prompt, moment)

    return error_of(Loop(changed, ddim_timesteps(4), guidance="two calls"))


class Mixing(torch.nn.Module):
    """A model whose rows see one another."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        model.transformer_blocks[0].register_forward_hook(lambda block, args, x: x + x.flip(0))

    def forward(self, hidden_states: torch.Tensor, **inputs: Any) -> Any:
        return self.model(hidden_states, **inputs)


def options_of(group: dist.ProcessGroup, case: str) -> dict[str, Any]:
    """Options that one rank has and the others have not."""
    if case == "different plans":
        return {"ranges": {"spatial": 2 + group.rank()}}
    return {"cut": "attention" if group.rank() else "atention"}


def refused(group: dist.ProcessGroup, case: str) -> str:
    """The error that a rank meets when the ranks cannot work together."""
    model: Any = tiny_latte(depth=1)
    options: dict[str, Any] = {"mesh": Mesh(group), "shard": "t"}
    if case in ("different plans", "a bad option"):
        options |= options_of(group, case)
    else:
        assert case == "wrong number"
        options = {"sequence_parallel": 2}
    return error_of(Loop(calls_of(compiled_pab(model, **options)), ddim_timesteps(4)))


def error_of(loop: Loop) -> str:
    """What a generation raises."""
    try:
        loop.run()
    except pab_compile.PabError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def generate_dit(
    group: dist.ProcessGroup | None, name: str, axis: str, cut: str
) -> tuple[list[torch.Tensor], list[int]]:
    """A generation of a DiT of diffusers, and the number of all-to-alls per step."""
    from dits.build import Denoising, build, run
    from dits.catalogue import CATALOGUE

    torch._dynamo.reset()
    dit = CATALOGUE[name]
    count = Counter(group.rank() if group else 0)
    mesh = {"mesh": Mesh(group), "shard": axis} if group else {}
    ranges = {"full": 2, "joint": 2, "cross": 3}
    options = {"ranges": ranges, "window": (0.1, 0.9), "cut": cut, "inner": count}
    compiled = compiled_pab(build(dit), **options, **dit.options, **mesh)
    denoising = Denoising(dit, num_steps=6)
    outputs: list[torch.Tensor] = []
    steps = (outputs.extend(run(compiled, **denoising.at(step))) for step in range(6))
    return outputs, [calls for calls, _ in count.per_step(steps)]


def generate_example(
    group: dist.ProcessGroup | None, name: str, num_frames: int, guidance: Any
) -> dict[str, Any]:
    """A generation of one of the examples' models, with the number of all-to-alls per step."""
    from examples.tiny import build, calls

    torch._dynamo.reset()
    count = Counter(group.rank() if group else 0)
    mesh = {"mesh": Mesh(group), "shard": "t"} if group else {}
    ranges = {"spatial": 2, "temporal": 3, "cross": 4, "full": 3}
    options = {"ranges": ranges, "window": (0.1, 0.8), "cut": "gated", "inner": count}
    compiled = compiled_pab(build(name, depth=1), **options, **mesh)
    latents = draw_latents()[:, :, :num_frames].contiguous()  # as it will be at every step
    loop = Loop(calls(name, compiled), ddim_timesteps(6), latents, guidance=guidance)
    per_step = [num for num, _ in count.per_step(loop.steps())]
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "kinds": stats.kinds,
        "per step": per_step,
    }


def failing(
    group: dist.ProcessGroup,
    attempts: Sequence[tuple[str, float]],
    two_axes: bool = False,
    anew: bool = False,
) -> list[dict[str, Any]]:
    """Generations in which some ranks have no memory in the third step, and what comes after each.

    Args:
        group: the ranks.
        attempts: which rank fails, or ``all`` of them, or all ``apart``, one after the other. And
            for how many seconds a failed rank waits for the others.
        two_axes: the ranks share the batch and the tokens, else the tokens.
        anew: the model is compiled anew before what comes after the last attempt.

    Returns:
        For each attempt what the failing call raised and after how many seconds; what the next
        generation raised, or else its last prediction.
    """
    options = grid_options(group, "mesh") if two_axes else {"mesh": Mesh(group), "shard": "t"}
    fails = {"who": "", "at": 0}

    def inner(graph_module: Any, _: Any) -> Any:
        def run(*args: torch.Tensor) -> Any:
            if fails["who"] in (str(group.rank()), "all", "apart") and fails["at"] == 0:
                time.sleep(2 * team.PATIENCE * group.rank() if fails["who"] == "apart" else 0)
                raise torch.OutOfMemoryError("no memory left")
            return graph_module.forward(*args)

        return run

    def attempt(model: Any) -> tuple[str, float, torch.Tensor | None]:
        guidance: Any = "batched" if two_axes else "none"
        loop = Loop(calls_of(model), ddim_timesteps(4), guidance=guidance)
        start = time.monotonic()
        try:
            for _ in loop.steps():
                fails["at"] -= 1
                start = time.monotonic()
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - start, None
        return "", 0.0, loop.predictions[-1]

    def compiled() -> Any:
        torch._dynamo.reset()
        return compiled_pab(tiny_latte(DEPTH), inner=inner, **PLANS["computes always"], **options)

    found, model = [], compiled()
    for number, (who, team.PATIENCE) in enumerate(attempts):
        fails |= {"who": who, "at": 3}
        raised, seconds, _ = attempt(model)
        fails["who"] = ""
        model = compiled() if anew and number == len(attempts) - 1 else model
        after, _, prediction = attempt(model)
        found.append(
            {"raised": raised, "seconds": seconds, "after": after, "prediction": prediction}
        )
    return found


def context_parallel(
    group: dist.ProcessGroup | None, name: str
) -> tuple[list[torch.Tensor], list[int]]:
    """A generation of a DiT that diffusers itself makes parallel, over the heads."""
    from dits.build import Denoising, build, run
    from dits.catalogue import CATALOGUE

    dit = CATALOGUE[name]
    config = {key: 1 if key.endswith("_layers") else n for key, n in dit.config.items()}
    model: Any = build(replace(dit, config={**config, "num_attention_heads": 4}))
    if group is not None:
        shape = (1, group.size())
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
        config = ContextParallelConfig(ulysses_degree=group.size(), mesh=mesh)
        # It places ranks on devices by their number, and CPUs have none.
        with mock.patch("torch.accelerator.device_count", return_value=1):
            model.enable_parallelism(config=config)
    count = Counter(group.rank() if group else 0)
    ranges = {"full": 2, "joint": 2, "cross": 3}
    compiled = compiled_pab(model, ranges=ranges, window=(0.1, 0.9), inner=count)
    denoising = Denoising(dit, num_steps=6, height=8, width=8, text=8)
    # What its hooks log at their first call is nothing that Dynamo traces.
    run(model, **denoising.at(0), return_dict=False)
    outputs: list[torch.Tensor] = []
    steps = (
        outputs.extend(run(compiled, **denoising.at(step), return_dict=False)) for step in range(6)
    )
    return outputs, [calls for calls, _ in count.per_step(steps)]


def hand_parallel(group: dist.ProcessGroup | None, full: bool) -> dict[str, Any]:
    """A generation of a model that exchanges by itself, with the all-to-alls per step."""
    torch._dynamo.reset()
    count = Counter(group.rank() if group else 0)
    options = {"ranges": {"spatial": 2, "temporal": 3, "full": 3}, "window": (0.1, 0.8)}
    compiled = compiled_pab(by_hand.build(group, full), inner=count, **options)
    loop = by_hand_loop(compiled)
    per_step = [num for num, _ in count.per_step(loop.steps())]
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "per step": per_step,
    }


def hand_parallel_refused(group: dist.ProcessGroup, case: str) -> str:
    """The error that a rank of such a model meets when others were given other options."""
    compiled = compiled_pab(by_hand.build(group), **options_of(group, case))
    return error_of(by_hand_loop(compiled))


def by_hand_loop(compiled: Any) -> Loop:
    """A loop of a model that knows no prompt."""

    def call(latents: torch.Tensor, timestep: torch.Tensor, *_: Any) -> torch.Tensor:
        return compiled(latents, timestep=timestep)

    return Loop(call, ddim_timesteps(6), by_hand.draw_latents())


def in_rings(
    group: dist.ProcessGroup | None, dtype: torch.dtype, inner: Any
) -> tuple[list[torch.Tensor], int]:
    """Three steps of a small model with joint attention in rings, and how many all-to-alls ran."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    count = Counter(group.rank() if group else 0)
    mesh = {"mesh": Mesh(group), "ring_parallel": 2} if group else {}
    model = TwoPrompts().requires_grad_(False).to(dtype)
    inner = count if inner == "eager" else inner
    compiled = compiled_pab(model, ranges={"joint": 2}, inner=inner, **mesh)
    x, _, prompts = two_prompts(5, 3)
    x, prompts = torch.randn_like(x).to(dtype), [torch.randn_like(p).to(dtype) for p in prompts]
    found = []
    with pab_compile.generation(timesteps=[900, 600, 300]), torch.no_grad():
        for time_now in (900, 600, 300):
            found.append(compiled(x, torch.tensor([time_now]), prompts))
            x = x - 0.1 * found[-1]
    return found, count.calls
