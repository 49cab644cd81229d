"""``splits``: compares the ways in which ranks can share a generation. It needs no ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pab_compile.errors import OptionError
from pab_compile.forecast.predict import options_for
from pab_compile.forecast.several import predict_all
from pab_compile.forecast.ways import RANK_OPTIONS, Splits, ways_to_share
from pab_compile.forecast.weights import gathered_around
from pab_compile.machine import Machine
from pab_compile.plans.schedule import Schedule

from .comm import look_at


def splits(
    model: torch.nn.Module,
    /,
    *args: Any,
    num_ranks: int,
    schedule: Schedule,
    machine: Machine | float,
    calls: int = 1,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Splits:
    """Predict how long a generation takes for each way in which ranks can share it.

    Like ``comm``, it needs no process group.

    Args:
        model: a module. If its forward breaks into graphs, those with attentions count.
        *args: inputs of the model.
        num_ranks: number of ranks.
        schedule: the steps of a generation.
        machine: as for ``scaling``.
        calls: calls of the model per step. 2 for guidance in two calls, which ranks can share.
        options: options of the backend, without those that say how ranks share the model.
        **kwargs: inputs of the model.

    Raises:
        OptionError: an option is wrong.
        UnsupportedModelError: the model is not understood.
    """
    given = dict(options or {})
    if named := [name for name in RANK_OPTIONS if given.get(name) is not None]:
        raise OptionError(f"splits finds {', '.join(named)}, so they cannot be given.")
    if calls not in (1, 2):
        raise OptionError(f"calls is 1, or 2 for guidance in two calls per step; got {calls!r}.")
    alone = options_for(given, 1)
    programs = look_at(model, args, kwargs, alone)
    if not isinstance(machine, Machine):
        one = predict_all(programs, alone, 1, schedule)
        machine = Machine(calls * one.work_always.flops / machine)
    around = gathered_around(model)
    return ways_to_share(programs, given, num_ranks, schedule, machine, calls, around=around)
