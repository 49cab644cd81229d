"""A DiT on several ranks beside one process: what differs, and what was exchanged and foretold."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

import pab_compile
from dits.build import Denoising, build, run
from dits.catalogue import CATALOGUE
from dits.in_types import TYPES, first_loop
from dits.spec import Dit
from helpers.world import Counter, World

PLANS: dict[str, dict[str, Any]] = {
    "pab246": {"ranges": "pab246"},
    "linear3": {"ranges": "linear3"},
}
NUM_STEPS = 10
NUM_RANKS = 2
ALL_TYPES = {**TYPES, "float64": torch.float64}  # rounding hardly shows in the last one
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2, "float64": 1e-12}
Outputs = list[torch.Tensor]


@dataclass(frozen=True)
class Exchanged:
    """What is exchanged in a generation.

    Attributes:
        collectives: how many.
        num_bytes: what rank 0 sends in them.
    """

    collectives: int
    num_bytes: int


@dataclass(frozen=True)
class Shared:
    """A model on several ranks, under one plan.

    Attributes:
        axis: what the ranks share; ``""`` if they cannot share the model.
        refusal: why they cannot.
        difference: the largest one to the outputs of one process, as a share of the largest output.
        exchanged: what rank 0 exchanged.
        foretold: what ``comm`` says of that; None if it refuses the model.
    """

    axis: str = ""
    refusal: str = ""
    difference: float = 0.0
    exchanged: Exchanged | None = None
    foretold: Exchanged | None = None


def measure(
    world: World, name: str, type_name: str, plans: Sequence[str] = tuple(PLANS)
) -> dict[str, Shared]:
    """Run a model on two ranks and on one, and compare.

    Args:
        world: two processes.
        name: of the model.
        type_name: a key of ``ALL_TYPES``.
        plans: keys of ``PLANS``.

    Returns:
        Plan -> what was found.
    """
    ranks = world.run(generations, name, type_name, plans, ranks=NUM_RANKS, alone=True)
    found = {}
    for number, plan in enumerate(plans):
        expected, foretold = ranks[number % NUM_RANKS]["alone"][plan]
        axis, refusal, outputs, exchanged = ranks[0]["shared"][plan]
        others = [rank["shared"][plan] for rank in ranks[1:]]
        if not refusal and (failed := [other[1] for other in others if other[1]]):
            refusal = f"only rank 0 works: {failed[0]}"
        if refusal:
            found[plan] = Shared(refusal=refusal, foretold=foretold)
            continue
        every = [outputs, *(other[2] for other in others)]
        worst = max(_difference(mine, expected) for mine in every)
        found[plan] = Shared(axis, "", worst, exchanged, foretold)
    return found


def generations(
    group: dist.ProcessGroup, name: str, type_name: str, plans: Sequence[str]
) -> dict[str, Any]:
    """A model under some plans on all ranks. Each rank also runs its share of the plans alone."""
    warnings.simplefilter("ignore")
    dit = CATALOGUE[name]
    with dit.switched():
        model = build(replace(dit, dtype=ALL_TYPES[type_name]))
        loop, _ = first_loop(
            dit, model, ALL_TYPES[type_name], NUM_STEPS, lambda x: run(model, **x.at(0))
        )
        mine = [plan for n, plan in enumerate(plans) if n % group.size() == group.rank()]
        alone = {plan: _alone(dit, model, loop, plan) for plan in mine}
        dist.barrier(group)
        shared = {plan: _shared(group, dit, model, loop, plan) for plan in plans}
    return {"alone": alone, "shared": shared}


def _alone(
    dit: Dit, model: torch.nn.Module, loop: Denoising, plan: str
) -> tuple[Outputs, Exchanged | None]:
    """What one process generates, and what two would exchange."""
    options = {**PLANS[plan], **dit.options}
    try:
        outputs = _generate(model, loop, {**options, "inner": "eager"})
    except pab_compile.PabError:
        return [], None
    timesteps = tuple(map(float, loop.table))
    try:
        report = pab_compile.comm(
            model,
            **loop.at(0),
            num_ranks=NUM_RANKS,
            schedule=pab_compile.Schedule(NUM_STEPS, timesteps),
            options=options,
        )
    except pab_compile.PabError:
        return outputs, None
    return outputs, Exchanged(round(report.num_collectives), round(report.wire_bytes))


def _shared(
    group: dist.ProcessGroup, dit: Dit, model: torch.nn.Module, loop: Denoising, plan: str
) -> tuple[str, str, Outputs, Exchanged | None]:
    """The axis that is shared, or why none is; what a rank generates and exchanges."""
    count = Counter(group.rank())
    parallel = {"sequence_parallel": group.size(), "inner": count}
    compiled: list[Any] = []
    try:
        outputs = _generate(model, loop, {**PLANS[plan], **dit.options, **parallel}, compiled)
    except pab_compile.PabError as error:
        return "", str(error), [], None
    notes = pab_compile.explain(compiled[0]).notes
    axes = [note.split(": ")[1].split(",")[0] for note in notes if note.startswith("sharded axis")]
    exchanged = Exchanged(count.calls + count.gathers, count.sent + count.gathered)
    return (*axes, "none")[0], "", outputs, exchanged


def _generate(
    model: torch.nn.Module, loop: Denoising, options: dict[str, Any], compiled: Sequence[Any] = ()
) -> Outputs:
    """All outputs of a generation. The compiled model is added to a list if one is given."""
    torch._dynamo.reset()
    pab_compile.reset()
    found: Any = torch.compile(model, backend="pab", dynamic=False, options=options)
    if isinstance(compiled, list):
        compiled.append(found)
    with pab_compile.generation(timesteps=loop.table):
        return [output for step in range(NUM_STEPS) for output in run(found, **loop.at(step))]


def _difference(mine: Outputs, expected: Outputs) -> float:
    assert len(mine) == len(expected) > 0
    pairs = zip(mine, expected, strict=True)
    most = max(float(output.abs().max()) for output in expected)
    return max(float((one.float() - other.float()).abs().max()) for one, other in pairs) / most
