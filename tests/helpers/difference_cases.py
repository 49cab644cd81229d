"""Cases in which one rank of a mesh differs from the others, on one compiled model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

import pab_compile
from helpers.differences import AT_A_STEP, AT_ONCE, Cancelled, Change
from helpers.latte import (
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.rank_cases import PLANS
from helpers.world import Mesh

STEPS, AT = 4, 2
"""Number of steps, and the step before which a rank does something else."""
Outcome = tuple[str, float, torch.Tensor | None]
"""The error or ``""``, after how many seconds, and the predictions."""


def _later_timesteps(loop: Loop, _: int) -> None:
    loop.timesteps = torch.cat([loop.timesteps[:1], (loop.timesteps[1:] - 5).clamp(min=0)])


BEFORE: dict[str, Change] = {**AT_ONCE, "later timesteps": _later_timesteps}


def differing_ranks(group: dist.ProcessGroup, names: list[str]) -> dict[str, Outcome]:
    """One generation per difference. Rank 1 is the one that differs."""
    torch._dynamo.reset()
    is_odd, model = group.rank() == 1, tiny_latte(1)
    interval = 2

    def plan(site: Any, step: int, *_: Any) -> int | None:
        return 0 if site.kind in ("spatial", "temporal") and step % interval else None

    compiled: Any = compiled_pab(model, plan=plan, mesh=Mesh(group), shard="t")
    found = {}
    for name in names:
        kind = name if is_odd else ""
        interval = 3 if kind == "plan" else 2
        loop = Loop(calls_of(compiled), ddim_timesteps(STEPS))
        if kind in BEFORE:
            BEFORE[kind](loop, 3)
        with _other_weights(model, kind) as change:
            found[name] = _outcome(loop, change, AT_A_STEP.get(kind))
    return found


def differing_functions(group: dist.ProcessGroup) -> dict[str, Outcome]:
    """A plan function whose default, or a number in whose code, is another one on rank 1."""
    rank, found = group.rank(), {}
    plans = {"default": _by_default(2 + rank), "literal": (_every_second, _every_third)[rank]}
    for name, plan in plans.items():
        torch._dynamo.reset()
        compiled = compiled_pab(tiny_latte(1), plan=plan, mesh=Mesh(group), shard="t")
        found[name] = _outcome(Loop(calls_of(compiled), ddim_timesteps(STEPS)))
    return found


def _by_default(every: int) -> Callable[..., int | None]:
    def plan(site: Any, step: int, *_: Any, interval: int = every) -> int | None:
        return 0 if site.kind == "spatial" and step % interval else None

    return plan


def _every_second(site: Any, step: int, *_: Any) -> int | None:
    return 0 if site.kind == "spatial" and step % 2 else None


def _every_third(site: Any, step: int, *_: Any) -> int | None:
    return 0 if site.kind == "spatial" and step % 3 else None


class Adapter(torch.nn.Module):
    """A layer with a LoRA that is not fused."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down, self.up = map(torch.nn.Parameter, _low_rank(layer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.down.T @ self.up.T


def _low_rank(layer: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    down = torch.randn(2, layer.in_features, generator=draw)
    return down, torch.randn(layer.out_features, 2, generator=draw)


@contextmanager
def _other_weights(model: Any, kind: str) -> Iterator[Callable[[], None]]:
    """Weights that are others for a while. Yields what changes them later, in a generation."""
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    attention = model.transformer_blocks[0].attn1
    layer = attention.to_q

    def fuse() -> None:
        down, up = _low_rank(layer)
        layer.weight.add_(up @ down)

    if kind == "a LoRA is fused":
        fuse()
    elif kind == "half a checkpoint":
        half = list(before)[::2]
        model.load_state_dict({name: 2 * before[name] for name in half}, strict=False)
    elif kind == "a LoRA is loaded":
        attention.to_q = Adapter(layer).requires_grad_(False)
    yield fuse if kind == "a LoRA is fused later" else lambda: None
    attention.to_q = layer
    model.load_state_dict(before)


def _outcome(
    loop: Loop,
    change: Callable[[], None] = lambda: None,
    act: Callable[[Loop], None] | None = None,
) -> Outcome:
    """Run a generation, in which weights change or a rank does something else."""
    start = time.monotonic()
    try:
        for step in loop.steps():
            if step + 1 == AT:
                change()
                if act is not None:
                    act(loop)
    except (pab_compile.PabError, Cancelled) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start, None
    return "", time.monotonic() - start, torch.stack(loop.predictions)


def sent_from_first(group: dist.ProcessGroup | None, seed: int) -> torch.Tensor:
    """A generation whose ranks have other latents and prompts, with those of the first rank."""
    torch._dynamo.reset()
    rank = group.rank() if group else 0
    mesh = {"mesh": Mesh(group), "shard": "t", "inputs": "first rank"} if group else {}
    compiled = compiled_pab(tiny_latte(1), **PLANS["before the gate"], **mesh)
    latents, prompt = draw_latents(seed + rank), draw_prompt(seed + rank)
    return Loop(calls_of(compiled), ddim_timesteps(STEPS), latents, prompt).run()
