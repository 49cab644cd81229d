"""Scaling: predicts how long a generation would take on any number of devices.

The time is that of the computation plus that of the links. Computation takes its floating point
operations divided by a rate. A link takes a latency per collective, and bytes divided by a
bandwidth. Bytes inside a node and bytes between nodes are sent at the same time. Nothing overlaps
with computation. Only contractions count. A rate that is measured over whole steps includes the
other ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.errors import OptionError, ShardingError
from pab_compile.forecast.predict import options_for
from pab_compile.forecast.seconds import Generation, generation_of
from pab_compile.forecast.several import predict_all
from pab_compile.forecast.weights import gathered_around
from pab_compile.machine import Machine
from pab_compile.plans.schedule import Schedule
from pab_compile.report.table import table_lines
from pab_compile.report.text import ShownAsText

from .comm import look_at

RANKS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ScalingRow:
    """The times for one number of devices.

    Attributes:
        num_ranks: number of devices.
        axis: the sharded axis; ``""`` if they cannot share the tokens.
        always: a generation in which every site computes at every step; None if impossible.
        planned: a generation with the plan; None if impossible.
        reason: why they cannot share the tokens.
    """

    num_ranks: int
    axis: str
    always: Generation | None
    planned: Generation | None
    reason: str = ""


@dataclass(frozen=True)
class Scaling(ShownAsText):
    """Times for several numbers of devices.

    Attributes:
        rows: one per number of devices, in the given order.
        alone: a generation without reuse on one device.
    """

    rows: tuple[ScalingRow, ...]
    alone: Generation

    def __getitem__(self, num_ranks: int) -> ScalingRow:
        """The row of a number of devices."""
        return next(row for row in self.rows if row.num_ranks == num_ranks)

    def __str__(self) -> str:
        """A table. Efficiency is the speed-up over one device divided by the number of devices."""
        headings = ("devices", "axis", "s", "efficiency", "in collectives")
        with_plan = ("s with plan", "in collectives", "plan saves", "against one without")
        rows = map(self._row, self.rows)
        lines = table_lines((*headings, *with_plan), rows, num_left=0, width=120)
        lines += [f"{row.num_ranks}: {row.reason}" for row in self.rows if row.reason]
        return "\n".join(lines)

    def _row(self, row: ScalingRow) -> Sequence[str]:
        if row.always is None or row.planned is None:
            return (str(row.num_ranks), "-")
        before, after = row.always.seconds, row.planned.seconds
        return (
            str(row.num_ranks),
            row.axis,
            f"{before:.2f}",
            f"{self.alone.seconds / before / row.num_ranks:.0%}",
            f"{row.always.exchange / before:.1%}",
            f"{after:.2f}",
            f"{row.planned.exchange / after:.1%}",
            f"{before / after:.2f}x",
            f"{self.alone.seconds / after:.1f}x",
        )


def scaling(
    model: torch.nn.Module,
    /,
    *args: Any,
    schedule: Schedule,
    machine: Machine | float,
    ranks: Sequence[int] = RANKS,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Scaling:
    """Predict how long a generation takes on several numbers of devices, from the graph.

    Inputs may be real, ``meta`` or fake tensors. No process group is needed. One device has all
    weights. More of them gather weights as ``comm`` says, among the ranks that share them now.

    Args:
        model: a module. If its forward breaks into graphs, those with attentions count.
        *args: inputs of the model.
        schedule: the steps of a generation.
        machine: the devices. Or the measured seconds of a generation without reuse on one device,
            which give the rate.
        ranks: numbers of devices, with those that share the batch.
        options: options of the backend; see ``pab_compile.Options``.
        **kwargs: inputs of the model.

    Raises:
        OptionError: an option is wrong.
        UnsupportedModelError: the model is not understood.
    """
    single = {k: v for k, v in (options or {}).items() if k not in ("batch_mesh", "batch_parallel")}
    alone = options_for(single, 1)
    programs = look_at(model, args, kwargs, alone)
    one = predict_all(programs, alone, 1, schedule)
    if not isinstance(machine, Machine):
        machine = Machine(one.work_always.flops / machine)
    rows = []
    around = gathered_around(model)
    for num_ranks in ranks:
        try:
            parsed = options_for(options, num_ranks)
            found = predict_all(programs, parsed, num_ranks, schedule, around)
        except (ShardingError, OptionError) as error:
            rows.append(ScalingRow(num_ranks, "", None, None, str(error)))
            continue
        of_all, of_plan = (found.always, found.rows) if num_ranks > 1 else ((), ())
        always = generation_of(machine, found, found.work_always, of_all)
        planned = generation_of(machine, found, found.work, of_plan)
        rows.append(ScalingRow(num_ranks, found.axis, always, planned))
    return Scaling(tuple(rows), generation_of(machine, one, one.work_always, ()))
