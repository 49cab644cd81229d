"""Least traffic: of plans that compute as much, the one whose ranks exchange the fewest bytes.

Plans under which all sites compute at the same steps exchange the same, whichever steps these are:
each computed step sends what the layout says. A choice there is only between plans that share out
their computations differently among the kinds, of which some exchange and others do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.errors import CalibrationError
from pab_compile.passes.program import Program
from pab_compile.plans.schedule import Schedule

from .comm import foretell, look_at, options_for
from .comm_report import CommReport


def least_traffic(
    model: torch.nn.Module,
    /,
    *args: Any,
    num_ranks: int,
    schedule: Schedule,
    plans: Mapping[str, Mapping[str, Any]],
    **kwargs: Any,
) -> dict[str, CommReport]:
    """Foretell what several plans exchange, each along the axis that is best for it.

    As ``comm`` it works from the graph alone, without a process group.

    Args:
        model: a module whose forward is one graph.
        *args: inputs as the model is called.
        num_ranks: number of ranks.
        schedule: the steps of a generation.
        plans: name -> options of the backend; see ``pab_compile.Options``. A plan that is a
            function cannot be foretold: it counts as computing always.
        **kwargs: inputs as the model is called.

    Returns:
        Their reports: those with the fewest bytes on the wire first, in the given order on ties.

    Raises:
        CalibrationError: the plans do not compute equally often.
        PlanError: a plan is not one of this model.
        ShardingError: no axis can be sharded over so many ranks.
        UnsupportedModelError: the model is not understood.
    """
    programs: dict[str, Program] = {}
    reports: dict[str, CommReport] = {}
    for name, given in plans.items():
        options = options_for(given, num_ranks)
        key = repr((options.cut, dict(options.axes)))  # what the analysis goes by
        if key not in programs:
            programs[key] = look_at(model, args, kwargs, options)
        options.make_plan().check(programs[key].sites)
        reports[name] = foretell(programs[key], options, num_ranks, schedule)
    if len({report.computed for report in reports.values()}) > 1:
        counts = ", ".join(f"{name} {report.computed:g}" for name, report in reports.items())
        raise CalibrationError(
            f"These plans do not compute equally often (sites times steps: {counts}), and one that "
            "computes less exchanges less. Compare plans that compute alike."
        )
    return dict(sorted(reports.items(), key=lambda item: item[1].wire_bytes))
