"""Seconds: how long a generation takes of which is known what it computes and exchanges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pab_compile.machine import Machine

from .comm_report import CommReport, CommRow, Work


@dataclass(frozen=True)
class Generation:
    """The time of one generation, in seconds.

    Attributes:
        compute: seconds of the computation.
        exchange: seconds of the collectives.
    """

    compute: float
    exchange: float

    @property
    def seconds(self) -> float:
        """All seconds."""
        return self.compute + self.exchange


def generation_of(
    machine: Machine, report: CommReport, work: Work, rows: Sequence[CommRow]
) -> Generation:
    """The time of a generation of which a report says what is exchanged."""
    computing = work.flops / machine.flops_per_second
    num_ranks = report.num_ranks * report.num_batch_ranks
    return Generation(
        max(computing, report.num_steps * machine.call_seconds),
        sum(_seconds_of(machine, row, num_ranks) for row in rows),
    )


def _seconds_of(machine: Machine, row: CommRow, num_ranks: int) -> float:
    """The seconds of what equal sites exchange."""
    num = row.num_sites * row.collectives * row.computed_steps
    if row.is_passed_on:
        return machine.passing_seconds(num, row.wire_bytes, num_ranks)
    return machine.seconds(num, row.wire_bytes, row.neighbours or num_ranks)
