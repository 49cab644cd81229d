"""Cases that run on every rank of a ``world.World``."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

import hand_parallel as by_hand
import pab_compile
from latte import Loop, calls_of, compiled_pab, ddim_timesteps, draw_latents, tiny_latte
from pab_compile import team
from world import Counter, Mesh

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
        The predictions, computations per kind, most bytes in slots, and per step the number of
        all-to-alls and the bytes that this rank sent in them.
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
    }


def refused(group: dist.ProcessGroup, case: str) -> str:
    """The error that a rank meets when the ranks cannot work together."""
    model: Any = tiny_latte(depth=1)
    options: dict[str, Any] = {"mesh": Mesh(group), "shard": "t"}
    if case == "different plans":
        options["ranges"] = {"spatial": 2 + group.rank()}
    elif case == "a bad option":
        options["cut"] = "attention" if group.rank() else "atention"
    elif case == "wrong number":
        options = {"sequence_parallel": 2}
    else:
        model = Broken(model)
    compiled = compiled_pab(model, **options)
    try:
        Loop(calls_of(compiled), ddim_timesteps(4)).run()
    except pab_compile.PabError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class Broken(torch.nn.Module):
    """A model whose forward breaks into two graphs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: torch.Tensor, **inputs: Any) -> Any:
        out = self.model(hidden_states, **inputs)
        torch._dynamo.graph_break()
        return (out[0] * 2,)


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


def failing(group: dist.ProcessGroup, who: str, patience: float) -> dict[str, Any]:
    """A generation in which some ranks fail in the third step, and what comes after it.

    Returns:
        What the failing call raised and after how many seconds; what the next generation raised,
        or else its last prediction.
    """
    team.PATIENCE = patience
    own = dist.new_group(list(range(group.size())))  # since it cannot be used afterwards
    fails = {"rank": group.rank() if who == "all" else int(who), "at": 3}

    def inner(graph_module: Any, _: Any) -> Any:
        def run(*args: torch.Tensor) -> Any:
            if fails["rank"] == group.rank() and fails["at"] == 0:
                raise ValueError("no memory left")
            return graph_module.forward(*args)

        return run

    def attempt() -> tuple[str, float, torch.Tensor | None]:
        loop = Loop(calls_of(model), ddim_timesteps(4))
        start = time.monotonic()
        try:
            for _ in loop.steps():
                fails["at"] -= 1
                start = time.monotonic()
        except Exception as error:
            return f"{type(error).__name__}: {error}", time.monotonic() - start, None
        return "", 0.0, loop.predictions[-1]

    options = {**PLANS["computes always"], "mesh": Mesh(own), "shard": "t"}
    model: Any = compiled_pab(tiny_latte(DEPTH), inner=inner, **options)
    raised, seconds, _ = attempt()
    fails["rank"] = -1
    after, _, prediction = attempt()
    return {"raised": raised, "seconds": seconds, "after": after, "prediction": prediction}


def hand_parallel(group: dist.ProcessGroup | None, full: bool) -> dict[str, Any]:
    """A generation of a model that exchanges by itself, with the all-to-alls per step."""
    torch._dynamo.reset()
    count = Counter(group.rank() if group else 0)
    options = {"ranges": {"spatial": 2, "temporal": 3, "full": 3}, "window": (0.1, 0.8)}
    compiled = compiled_pab(by_hand.build(group, full), inner=count, **options)

    def call(latents: torch.Tensor, timestep: torch.Tensor, *_: Any) -> torch.Tensor:
        return compiled(latents, timestep=timestep)

    loop = Loop(call, ddim_timesteps(6), by_hand.draw_latents())
    per_step = [num for num, _ in count.per_step(loop.steps())]
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "per step": per_step,
    }
