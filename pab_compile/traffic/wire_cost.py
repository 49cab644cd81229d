"""Costs of a plan in bytes that ranks exchange, for ``calibrate``."""

from __future__ import annotations

from pab_compile.calibration.cost import Cost

from .comm_report import CommReport


def wire_cost(report: CommReport) -> Cost:
    """Bytes that a rank sends to others, from what ``comm`` foretells.

    Raises:
        CalibrationError: nothing is exchanged for a site, so that no plan sends less.
    """
    always, never = (
        sum(row.wire_bytes for row in rows) / max(report.num_steps, 1)
        for rows in (report.always, report.never)
    )
    return Cost(always, never, "bytes on the wire")
