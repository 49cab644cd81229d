"""Cases that run on every rank of a ``world.World``."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

import pab_compile
from latte import Loop, calls_of, compiled_pab, ddim_timesteps, draw_latents, tiny_latte
from world import Counter, Mesh

PLANS: dict[str, dict[str, Any]] = {
    "computes always": {"ranges": {}},
    "before the gate": {"ranges": {"spatial": 2, "temporal": 3, "cross": 4}, "window": (0.1, 0.9)},
    "behind the gate": {
        "ranges": {"spatial": 2, "temporal": 3, "cross": 4},
        "window": (0.1, 0.9),
        "cut": "gated",
    },
    "coalesced": {
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
    group: dist.ProcessGroup | None, plan: str, guidance: Any, inner: Any = None
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
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance)
    per_step = []
    for _ in loop.steps():
        per_step.append((count.calls, count.sent))
        count.calls = count.sent = 0
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
    outputs, per_step = [], []
    for step in range(6):
        outputs += run(compiled, **denoising.at(step))
        per_step.append(count.calls)
        count.calls = 0
    return outputs, per_step


def generate_example(group: dist.ProcessGroup | None, name: str, num_frames: int) -> dict[str, Any]:
    """A generation of one of the examples' models, with the number of all-to-alls per step."""
    from examples.tiny import build, calls

    torch._dynamo.reset()
    count = Counter(group.rank() if group else 0)
    mesh = {"mesh": Mesh(group), "shard": "t"} if group else {}
    ranges = {"spatial": 2, "temporal": 3, "cross": 4, "full": 3}
    options = {"ranges": ranges, "window": (0.1, 0.8), "cut": "gated", "inner": count}
    compiled = compiled_pab(build(name, depth=1), **options, **mesh)
    latents = draw_latents()[:, :, :num_frames]
    loop = Loop(calls(name, compiled), ddim_timesteps(6), latents, guidance="batched")
    per_step = []
    for _ in loop.steps():
        per_step.append(count.calls)
        count.calls = 0
    stats = pab_compile.stats(compiled)
    return {
        "predictions": torch.stack(loop.predictions),
        "computed": dict(stats.computed),
        "kinds": stats.kinds,
        "per step": per_step,
    }
