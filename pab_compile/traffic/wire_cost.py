"""``wire_cost``: the cost of steps in bytes that ranks exchange, for ``tune``."""

from __future__ import annotations

from pab_compile.calibration.cost import Cost
from pab_compile.forecast.comm_report import CommReport


def wire_cost(report: CommReport) -> Cost:
    """Bytes per step that a rank sends to others, as ``comm`` predicts.

    Raises:
        CalibrationError: no site exchanges anything, so no plan can send less.
    """
    always, never = (
        sum(row.wire_bytes for row in rows) / max(report.num_steps, 1)
        for rows in (report.always, report.never)
    )
    return Cost(always, never, "bytes on the wire")
