"""Cases in which one rank of a mesh differs from the others, on one compiled model."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist

import pab_compile
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

STEPS = 4
Outcome = tuple[str, float, torch.Tensor | None]
"""The error or ``""``, after how many seconds, and the predictions."""


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
        loop = Loop(calls_of(compiled), ddim_timesteps(STEPS))
        weight = next(model.parameters())
        if is_odd and name == "latents":
            loop.latents = draw_latents(9)
        elif is_odd and name == "prompt":
            loop.prompt = draw_prompt(9)
        elif is_odd and name == "length":
            loop.prompt, loop.null_prompt = loop.prompt[:, :3], loop.null_prompt[:, :3]
        elif is_odd and name == "noise":
            loop.update = lambda prediction, _, latents: latents + 0.2 * prediction
        elif is_odd and name == "timesteps":
            loop.timesteps = ddim_timesteps(STEPS + 1)
        elif is_odd and name == "weights":
            weight.mul_(2)
        interval = 3 if is_odd and name == "plan" else 2
        found[name] = outcome(loop, stop=2 if is_odd and name == "begins again" else None)
        if is_odd and name == "weights":
            weight.div_(2)
    return found


def outcome(loop: Loop, stop: int | None = None) -> Outcome:
    """Run a generation; one that stops begins anew with another loop."""
    start = time.monotonic()
    try:
        for step in loop.steps():
            if step == stop:
                pab_compile.reset()
                Loop(loop.call, loop.timesteps).run()
    except pab_compile.PabError as error:
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
