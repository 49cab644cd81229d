"""Learning sizes: the second capture of a model shows what follows from the sizes that changed."""

from __future__ import annotations

import logging

from torch import fx

from pab_compile.passes.graph.join import Eager
from pab_compile.passes.graph.open_sizes import NotOpenError, SizeInputs
from pab_compile.passes.graph.unify import Known, KnownCaptures, unify

from .request import Request
from .settings import Settings

_log = logging.getLogger(__name__)
_captures = KnownCaptures()


def learn_sizes(captured: fx.GraphModule, request: Request, settings: Settings) -> bool:
    """Let the numbers of a captured graph remember what they follow from, if this can be known.

    Args:
        captured: the graph; modified in place. Later captures learn from it.
        request: what it was captured for.
        settings: how it is compiled.

    Returns:
        Whether the graph has open sizes now.
    """
    if not request.alone:
        return False
    where = SizeInputs.of(request.graph)
    given = where.values(request.args)
    others = _captures.add(Known(captured, dict(zip(where.sources, given, strict=True))))
    if not _may_open(request, settings):
        return False
    try:
        unify(captured, others, request.graph, given)
    except NotOpenError as error:
        _log.info("compiled for these sizes alone: %s", error)
        return False
    return True


def _may_open(request: Request, settings: Settings) -> bool:
    """Whether a graph may be compiled for all sizes that Dynamo leaves open."""
    if request.is_observed or request.grid is not None:
        return False
    is_made = any(isinstance(origin, Eager) for origin in request.origins)
    return request.has_open_sizes and settings.compiler.opens_sizes and not is_made
