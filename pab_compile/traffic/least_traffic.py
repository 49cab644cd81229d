"""Least traffic: compares plans that compute equally often by the bytes that ranks exchange.

Some kinds exchange when they compute, and others do not. So plans exchange different amounts if
they distribute their computations differently among the kinds. If all sites compute at the same
steps, only the number of these steps matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.errors import CalibrationError
from pab_compile.forecast.comm_report import CommReport
from pab_compile.forecast.predict import options_for
from pab_compile.forecast.several import predict_all
from pab_compile.forecast.weights import gathered_around
from pab_compile.passes.program import Program
from pab_compile.plans.schedule import Schedule

from .comm import look_at


def least_traffic(
    model: torch.nn.Module,
    /,
    *args: Any,
    num_ranks: int,
    schedule: Schedule,
    plans: Mapping[str, Mapping[str, Any]],
    **kwargs: Any,
) -> dict[str, CommReport]:
    """Predict what ranks exchange with several plans, each along the best axis for it.

    Like ``comm``, it needs no process group.

    Args:
        model: a module whose forward is one graph.
        *args: inputs of the model.
        num_ranks: number of ranks.
        schedule: the steps of a generation.
        plans: name -> options of the backend; see ``pab_compile.Options``. A plan that is a
            function counts as computing always.
        **kwargs: inputs of the model.

    Returns:
        The reports, with the fewest bytes on the wire first. Ties have the given order.

    Raises:
        CalibrationError: the plans do not compute equally often.
        PlanError: a plan does not fit the model.
        ShardingError: no axis can be sharded over so many ranks.
        UnsupportedModelError: the model is not understood.
    """
    programs: dict[str, tuple[Program, ...]] = {}
    reports: dict[str, CommReport] = {}
    for name, given in plans.items():
        options = options_for(given, num_ranks)
        key = repr((options.cut, dict(options.axes)))  # the options that the analysis depends on
        if key not in programs:
            programs[key] = look_at(model, args, kwargs, options)
        sites = [site for program in programs[key] for site in program.sites]
        options.make_plan().check(sites)
        reports[name] = predict_all(
            programs[key], options, num_ranks, schedule, gathered_around(model)
        )
    if len({report.computed for report in reports.values()}) > 1:
        counts = ", ".join(f"{name} {report.computed:g}" for name, report in reports.items())
        raise CalibrationError(
            f"These plans do not compute equally often (sites times steps: {counts}). A plan that "
            "computes less also exchanges less. Compare plans that compute equally often."
        )
    return dict(sorted(reports.items(), key=lambda item: item[1].wire_bytes))
