"""Random differences between ranks: each ends in equal videos, or in an error on every rank."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import pab_compile
from helpers.differences import AT_A_STEP, AT_ONCE, Cancelled
from helpers.latte import Guidance, Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from helpers.rank_cases import grid_options
from helpers.world import Mesh, World, meet_beside
from pab_compile.ranks import team

STEPS = 5
SECONDS = 20.0
TIMEOUT = 8.0
"""The timeout of the process group."""


@dataclass(frozen=True)
class Difference:
    """What one rank does differently.

    Attributes:
        seed: of the case.
        kind: a key of ``KINDS``.
        rank: the rank that differs.
        step: the step at which it does so, if it happens at one.
    """

    seed: int
    kind: str
    rank: int
    step: int


WITHIN = (
    "cancels",
    "begins again",
    "resets",
    "sleeps",
    "fails inside",
    "calls once more",
    "states steps",
    "states a generation",
)
KINDS = ("nothing", "weights", "plan", "compiles anew", "does not call", *AT_ONCE, *WITHIN)
HARMLESS = ("nothing", "sleeps")
Outcome = tuple[str, float, torch.Tensor | None]
"""The error or ``""``, after how many seconds, and the predictions."""


MESHES = {"tokens of 2": 2, "calls of 2": 2, "tokens of 3": 3, "rows and tokens of 4": 4}
"""What the ranks share -> how many they are."""
_TOGETHER = 10  # cases of one compiled model


def drawn(seed: int) -> tuple[str, Difference]:
    """The mesh and the difference of a seed."""
    draw = random.Random(seed)
    mesh, kind = draw.choice(list(MESHES)), draw.choice(KINDS)
    return mesh, Difference(seed, kind, draw.randrange(MESHES[mesh]), draw.randrange(1, STEPS))


def check(world: World, seeds: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Run the cases of some seeds.

    Args:
        world: processes whose groups have the timeout ``TIMEOUT``.
        seeds: the cases.

    Yields:
        A seed, the kind of its difference, and what is wrong with how it ended, or ``""``.
    """
    cases = [drawn(seed) for seed in seeds]
    for mesh, num_ranks in MESHES.items():
        mine = [difference for which, difference in cases if which == mesh]
        for start in range(0, len(mine), _TOGETHER):
            differences = mine[start : start + _TOGETHER]
            ranks = world.run(outcomes, mesh, differences, ranks=num_ranks, alone=True)
            for number, difference in enumerate(differences):
                ended = [found[number] for found in ranks]
                yield difference.seed, difference.kind, _wrong(difference, ended)


def _wrong(difference: Difference, ended: Sequence[Outcome]) -> str:
    errors = [error for error, _, _ in ended]
    slowest = max(seconds for _, seconds, _ in ended)
    if slowest > SECONDS:
        return f"took {slowest:.0f} s: {errors}"
    if all(errors):
        return f"is no error: {errors}" if difference.kind in HARMLESS else ""
    if any(errors):
        return f"an error on some ranks only: {errors}"
    videos = [video for _, _, video in ended if video is not None]
    are_equal = all(torch.equal(video, videos[0]) for video in videos)
    return "" if are_equal else "no error, and the videos differ"


@dataclass
class State:
    """What a rank can change between two generations or steps.

    Attributes:
        model: the model.
        fails: whether its pieces raise an error.
        range: every which step the plan computes.
    """

    model: torch.nn.Module
    fails: bool = False
    range: int = 2


def outcomes(
    group: dist.ProcessGroup, mesh: str, differences: Sequence[Difference]
) -> list[Outcome]:
    """How every difference ends on this rank. The ranks begin each of them together."""
    team.PATIENCE = 1.0
    state = State(tiny_latte(1))

    def inner(graph_module: Any, _: Any) -> Any:
        def run(*args: torch.Tensor) -> Any:
            if state.fails:
                raise ValueError("no memory left")
            return graph_module.forward(*args)

        return run

    def plan(site: Any, step: int, *_: Any) -> int | None:
        return 0 if site.kind in ("spatial", "temporal", "cross") and step % state.range else None

    options: dict[str, Any] = {"mesh": Mesh(group), "shard": "t"}
    guidance: Guidance = "none"
    if mesh == "calls of 2":
        options, guidance = {"batch_mesh": Mesh(group)}, "two calls"
    elif mesh == "rows and tokens of 4":
        options, guidance = grid_options(group, "mesh"), "batched"
    compiled: Any = compiled_pab(state.model, plan=plan, inner=inner, **options)
    _compile(group, Loop(calls_of(compiled), ddim_timesteps(STEPS), guidance=guidance))
    found = []
    for number, difference in enumerate(differences):
        meet_beside(group, f"before {number}")
        loop = Loop(calls_of(compiled), ddim_timesteps(STEPS), guidance=guidance)
        found.append(_outcome(loop, difference, group.rank() == difference.rank, state))
        state.fails, state.range = False, 2
        meet_beside(group, f"after {number}")
        pab_compile.reset()
    return found


def _compile(group: dist.ProcessGroup, loop: Loop) -> None:
    """Compile the model. On a busy machine a rank may take longer than the short timeout."""
    for attempt in range(4):
        meet_beside(group, "compiles")
        try:
            loop.run()
            return
        except pab_compile.RanksError:
            if attempt == 3:
                raise
            loop = Loop(loop.call, loop.timesteps, guidance=loop.guidance)


def _outcome(
    loop: Loop,
    difference: Difference,
    is_other: bool,
    state: State,
) -> Outcome:
    start = time.monotonic()
    kind, weight = difference.kind, next(state.model.parameters())
    if is_other and kind in AT_ONCE:
        AT_ONCE[kind](loop, difference.seed)
    if is_other and kind == "weights":
        weight.mul_(2)
    if is_other and kind == "plan":
        state.range = 3
    if is_other and kind == "compiles anew":
        torch._dynamo.reset()
    error = ""
    try:
        if is_other and kind == "does not call":
            raise Cancelled("did not call")
        for step in loop.steps():
            if is_other and step + 1 == difference.step:
                state.fails = kind == "fails inside"
                if kind in AT_A_STEP:
                    AT_A_STEP[kind](loop)
    except (pab_compile.PabError, Cancelled, ValueError) as raised:
        error = f"{type(raised).__name__}: {raised}"
    if is_other and kind == "weights":
        weight.div_(2)  # exactly as before
    video = None if error else torch.stack(loop.predictions)
    return error, time.monotonic() - start, video
