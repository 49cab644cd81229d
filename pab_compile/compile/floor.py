"""Floor: whether whole outputs could be reused where a model is refused.

With ``cut="output"`` nothing of a model need be known but its latents, its timestep and what it
returns. Before an error offers this, the refused graph is tried so, up to where something would be
compiled. What is offered can therefore be done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pab_compile.errors import OFFER, InvariantError, UnsupportedModelError
from pab_compile.options import Options
from pab_compile.passes.errors import NotTracedError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Part
from pab_compile.passes.graph.measured import is_written_to
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.sites.site import OUTPUT
from pab_compile.report.dump import Dumper

from .analysis import Known, analyse
from .parts import captured_part
from .request import Request
from .settings import Settings
from .untraced import may_be_whole, untraced

_log = logging.getLogger(__name__)


def offered(
    error: UnsupportedModelError | InvariantError, is_taken: bool
) -> UnsupportedModelError | InvariantError:
    """An error about a model; it offers the reuse of whole outputs if the model is taken so."""
    if not is_taken and not isinstance(error, NotTracedError):
        return error
    kind = InvariantError if isinstance(error, InvariantError) else UnsupportedModelError
    text = str(error)
    if is_taken:
        text = f"{text}{'' if text.endswith('.') else '.'} {OFFER}"
    found = kind(text)
    found.__cause__ = error.__cause__ or error
    return found


def takes_request(request: Request, settings: Settings) -> bool:
    """Whether the output of a refused graph could be reused."""
    options = settings.for_form(request.form).options
    if not _is_allowed(options):
        return False
    known = request.expected()
    try:
        part = captured_part(request, settings)
    except Exception as error:  # whatever it is, the model is refused already
        graph = (request.graph, request.args)
        return not request.is_observed and takes_graph(*graph, error, known, options)
    return takes_part(part, known, options, request.alone)


def takes_part(part: Part, known: Known | None, options: Options, alone: bool) -> bool:
    """Whether the output of a captured graph could be reused.

    Args:
        part: the graph. It is not changed.
        known: latents and clock, if they are known without the graph.
        options: those with which nothing in it can be reused.
        alone: whether the graph is the whole forward.
    """
    if not _is_allowed(options):
        return False
    options = replace(options, ranges="linear3", cut=OUTPUT, coalesce=False, plan=None)
    part = replace(part, graph_module=copy_graph(part.graph_module))
    try:
        program = analyse(part, options, options.make_plan(), Dumper(None), alone, known)
    except Exception as error:  # whatever it is, the model is refused already
        _log.info("its output cannot be reused either: %s", error)
        return False
    return any(site.can_broadcast for site in program.sites)


def takes_graph(
    graph: fx.GraphModule,
    args: Sequence[Any],
    error: Exception,
    known: Known | None,
    options: Options,
) -> bool:
    """Whether the output of a graph that could not be captured could be reused.

    Args:
        graph: Dynamo's graph.
        args: Dynamo's inputs.
        error: why it was not captured.
        known: latents and clock, if they are known without the graph.
        options: those with which nothing in it can be reused.
    """
    if known is None or not may_be_whole(error) or not _is_allowed(options):
        return False
    given = zip(ir.placeholders(graph.graph), args, strict=True)
    if any(is_written_to(node) for node, arg in given if not isinstance(arg, torch.nn.Parameter)):
        return False  # a step that reuses would not write
    return untraced(graph, args) is not None


def _is_allowed(options: Options) -> bool:
    """Whether options are not those already, and allow them."""
    return options.cut != OUTPUT and not options.is_shared
