"""``comm``: predicts what any number of ranks would exchange. It needs no ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from pab_compile.compile.analysis import holds_attention
from pab_compile.compile.collecting import collector_paused
from pab_compile.dynamo import trace_once
from pab_compile.errors import OptionError, UnsupportedModelError
from pab_compile.forecast.comm_report import CommReport
from pab_compile.forecast.predict import options_for
from pab_compile.forecast.several import predict_all
from pab_compile.forecast.weights import gathered_around
from pab_compile.inspect.explain import Survey, by_name
from pab_compile.options import Options, parse_options
from pab_compile.passes.program import Program
from pab_compile.plans.schedule import Schedule
from pab_compile.runtime.layer_hooks import whole_weights, with_cause

_PARALLEL = ("mesh", "sequence_parallel", "batch_mesh", "batch_parallel", "shard")


def comm(
    model: torch.nn.Module,
    /,
    *args: Any,
    schedule: Schedule,
    num_ranks: int | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> CommReport:
    """Predict what ranks would exchange, from the graph.

    Inputs may be real, ``meta`` or fake tensors. No process group is needed.

    Gathers of weights count too if ranks share those of the given model: after ``gather_weights``,
    or with ``fully_shard`` around the model as a whole. Then all these ranks must call this.

    Args:
        model: a module. If its forward breaks into graphs, those with attentions count.
        *args: inputs of the model.
        schedule: the steps of a generation.
        num_ranks: number of ranks, with those that share the batch. None: as the options say.
        options: options of the backend (``pab_compile.Options``). Only the size of a mesh counts.
        **kwargs: inputs of the model.

    Raises:
        OptionError: the number of ranks is unknown, or it does not fit the options.
        ShardingError: no axis can be sharded over so many ranks.
        UnsupportedModelError: the model is not understood.
    """
    if num_ranks is None:
        num_ranks = _num_ranks(options)
    parsed = options_for(options, num_ranks)
    programs = look_at(model, args, kwargs, parsed)
    return predict_all(programs, parsed, num_ranks, schedule, gathered_around(model))


def _num_ranks(options: Mapping[str, Any] | None) -> int:
    """The number of ranks in the options."""
    parsed = parse_options({**(options or {}), "shard": None})
    found = parsed.num_ranks * parsed.num_batch_ranks
    if found == 1:
        raise OptionError(
            "The number of ranks is unknown: give num_ranks, or options with mesh or "
            "sequence_parallel, such as those of the compiled model."
        )
    return found


def look_at(
    model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], options: Options
) -> tuple[Program, ...]:
    """Find the sites of a model, without compiling it.

    Returns:
        The one graph of the forward, or those of several that hold attentions.

    Raises:
        UnsupportedModelError: the model is not understood.
    """
    alone = replace(options, **dict.fromkeys(_PARALLEL), coalesce=False)
    survey = Survey(alone, options.make_plan())
    try:
        with torch.no_grad(), collector_paused(), whole_weights(model):
            trace_once(model.forward, *by_name(model.forward, args, kwargs), survey.run)
    except UnsupportedModelError as error:
        if (named := with_cause(error, model)) is error:
            raise
        raise named from error
    programs = survey.programs
    if len(programs) > 1:
        programs = [program for program in programs if holds_attention(program)]
    if not programs:
        error = UnsupportedModelError(
            "No graph of the forward holds an attention that can be reused, and so none is shared."
        )
        raise with_cause(error, model)
    return tuple(programs)
