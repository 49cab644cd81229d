"""``explain``: what the compiler finds in a model, without compiling anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from pab_compile.passes import ir
from pab_compile.passes.capture import Inputs, break_reason, capture
from pab_compile.passes.coalesce import coalesce
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.flops import count_flops
from pab_compile.passes.join import Part
from pab_compile.passes.measured import measure
from pab_compile.passes.parallel.choose import choose
from pab_compile.passes.pipeline import Program
from pab_compile.passes.sites import Site

from .analysis import analyse, nothing_found, reason_of
from .dump import Dumper
from .forward import Forwards
from .lower import compilation_of, compiling, trace_once
from .options import Options, parse_options
from .plan import Plan
from .report import Explanation, describe_site
from .share import computed_share


def explain(
    model: torch.nn.Module | Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Trace a model and report every site, without running the inner compiler.

    Works on real, ``meta`` and fake tensors, so that a model too large for the machine can be
    explained where it is only described. A forward that breaks into several graphs gives one
    report; the model then runs, graph by graph.

    Args:
        model: a module, compiled or not. Of a compiled one the options are taken, unless given.
        *args: inputs as the model is called.
        options: options of the backend; see ``pab_compile.Options``.
        **kwargs: inputs as the model is called.

    Returns:
        The sites with kind, evidence, range, bytes and FLOPs.

    Raises:
        OptionError: an option is wrong.
        UnsupportedModelError: no graph of the model has latents, a clock and attention.
    """
    if options is None and (compilation := compilation_of(model)) is not None:
        options = compilation.options
    parsed = parse_options(options)
    survey = _Survey(parsed, parsed.make_plan())
    module = getattr(model, "_orig_mod", model)
    forward = module.forward if isinstance(module, torch.nn.Module) else module
    with torch.no_grad():
        trace_once(forward, *by_name(forward, args, kwargs), survey.run)
    return survey.explanation()


@dataclass(frozen=True, eq=False)
class _Seen:
    """A graph of the forward; ``program`` is None where nothing in it can be broadcast."""

    part: Part | None
    program: Program | None
    reason: str
    break_reason: str
    sites: tuple[Site, ...] = ()


class _Survey:
    """Runs the graphs of a forward as they are and takes note of what is in them."""

    def __init__(self, options: Options, plan: Plan) -> None:
        self._options = options
        self._plan = plan
        self._dumper = Dumper(options.dump)
        self._forwards = Forwards()
        self._seen: list[_Seen] = []

    def run(self, graph_module: fx.GraphModule, args: Sequence[Any]) -> Any:
        """Analyse one graph, then run it."""
        forward = self._forwards.current()
        measured = measure(graph_module)
        reason = break_reason(graph_module)
        graph_module, args = measured.rest, measured.extend(tuple(args))
        inputs = Inputs.of(graph_module, args)
        tensors = inputs.tensors(args)
        origins = forward.origins(inputs, tensors)
        alone = not forward.visited and forward.starts_at_root and not reason
        part = program = None
        failure = ""
        try:
            with compiling():
                part = Part(capture(graph_module, args), *origins)
                program = analyse(part, self._options, self._plan, self._dumper, alone)
                if self._options.num_ranks > 1:
                    share = partial(computed_share, self._plan)
                    choice = choose(program, self._options.num_ranks, share, self._options.shard)
                    program.sharding = tuple(choice.lines())
                if self._options.coalesce:
                    found = coalesce(program.graph_module, program.sites, self._plan.pattern)
                    program.coalesced = found.lines
        except UnsupportedModelError as error:
            if alone:
                raise
            failure = reason_of(error, part)
        self._seen.append(_Seen(part, program, failure, reason))
        outputs = graph_module.forward(*args)
        forward.finish(self._seen[-1], tensors, outputs)
        return outputs

    def explanation(self) -> Explanation:
        """What was found in all graphs together."""
        if not self._seen:
            raise UnsupportedModelError("The model runs no tensor op.")
        programs = [seen.program for seen in self._seen if seen.program is not None]
        failures = [seen.reason for seen in self._seen]
        breaks = [seen.break_reason for seen in self._seen]
        if not programs:
            raise nothing_found(failures, breaks)
        captured = [seen.part.graph_module.graph for seen in self._seen if seen.part is not None]
        return Explanation(
            sites=tuple(describe_site(site, self._plan) for p in programs for site in p.sites),
            num_nodes=sum(len(graph.nodes) for graph in captured),
            total_flops=sum(count_flops(graph.nodes) for graph in captured),
            clock=programs[0].clock,
            latents=ir.source(programs[0].inferred_axes.latents),
            notes=tuple(
                dict.fromkeys(
                    [note for p in programs for note in p.inferred_axes.notes]
                    + [line for p in programs for line in (*p.sharding, *p.coalesced)]
                    + [f"computed at every step: {failure}" for failure in failures if failure]
                )
            ),
            seconds=programs[0].seconds,
            num_graphs=len(self._seen),
            breaks=tuple(dict.fromkeys(filter(None, breaks))),
        )


def by_name(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments by keyword where the signature allows, so that the graph's inputs have names."""
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(named):
        return args, dict(kwargs)
    return (), {**dict(zip(named, args, strict=False)), **kwargs}
