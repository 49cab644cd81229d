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
    num = sum(row.num_sites * row.collectives * row.computed_steps for row in rows)
    sent = sum(row.wire_bytes for row in rows)
    return Generation(
        max(computing, report.num_steps * machine.call_seconds),
        machine.seconds(num, sent, report.num_ranks * report.num_batch_ranks),
    )
