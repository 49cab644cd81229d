"""``explain``: what the compiler finds in a model, without compiling anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes import ir
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.flops import count_flops
from pab_compile.passes.pipeline import Program

from .dump import Dumper
from .lower import compilation_of, trace_once
from .options import parse_options
from .program import analyse
from .report import Explanation, describe_site


def explain(
    model: torch.nn.Module | Callable[..., Any],
    /,
    *args: Any,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Explanation:
    """Trace a model and report every site, without running the inner compiler.

    Works on real, ``meta`` and fake tensors, so that a model too large for the machine can be
    explained where it is only described.

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
    plan = parsed.make_plan()
    dumper = Dumper(parsed.dump)
    programs: list[Program] = []
    failures: list[UnsupportedModelError] = []

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        try:
            programs.append(analyse(graph_module, inputs, parsed, plan, dumper))
        except UnsupportedModelError as error:
            failures.append(error)

    module = getattr(model, "_orig_mod", model)
    forward = module.forward if isinstance(module, torch.nn.Module) else module
    with torch.no_grad():
        trace_once(forward, *_by_name(forward, args, kwargs), look)
    if not programs:
        raise failures[0] if failures else UnsupportedModelError("The model runs no tensor op.")
    return Explanation(
        sites=tuple(describe_site(site, plan) for p in programs for site in p.sites),
        num_nodes=sum(len(p.graph_module.graph.nodes) for p in programs),
        total_flops=sum(count_flops(p.graph_module.graph.nodes) for p in programs),
        clock=_source(programs[0], programs[0].clock),
        latents=ir.source(programs[0].inferred_axes.latents),
        notes=tuple(note for p in programs for note in p.inferred_axes.notes)
        + tuple(f"one graph was left out: {failure}" for failure in failures),
        seconds=programs[0].seconds,
    )


def _source(program: Program, placeholder: str) -> str:
    inputs = ir.placeholders(program.graph_module.graph)
    return next(ir.source(node) for node in inputs if node.name == placeholder)


def _by_name(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments by keyword where the signature allows, so that the graph's inputs have names."""
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(named):
        return args, dict(kwargs)
    return (), {**dict(zip(named, args, strict=False)), **kwargs}
