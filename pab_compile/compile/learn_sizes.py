"""Learning sizes: captures of a model at other sizes show what follows from which size.

They are those of other calls. If these do not show enough, the graph is captured once more, at
sizes that nobody asked for.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.join import earlier_sizes
from pab_compile.passes.graph.open_sizes import NotOpenError, OpenSizes, SizeInputs
from pab_compile.passes.graph.other_sizes import at_sizes
from pab_compile.passes.graph.unify import Known, KnownCaptures, unify

from .request import Request
from .settings import Settings

_log = logging.getLogger(__name__)
_captures = KnownCaptures()
_in_vain: weakref.WeakSet[fx.GraphModule] = weakref.WeakSet()


def learn_sizes(captured: fx.GraphModule, request: Request, settings: Settings) -> bool:
    """Let the numbers of a captured graph remember what they follow from, if this can be known.

    Args:
        captured: the graph; modified in place. Later captures learn from it.
        request: what it was captured for.
        settings: how it is compiled.

    Returns:
        Whether the graph has open sizes now.
    """
    where = SizeInputs.of(request.graph)
    given = where.values(request.args)
    others = _captures.add(Known(captured, dict(zip(where.sources, given, strict=True))))
    if not _may_open(request, settings):
        return False
    try:
        if given:
            unify(captured, others, request.graph, given, partial(_captured_at, request))
        else:
            ir.set_open_sizes(captured, OpenSizes.begin((), ()))
        ir.open_sizes(captured).extend(earlier_sizes(request.origins))
    except NotOpenError as error:
        _in_vain.add(request.graph)
        _log.info("compiled for these sizes alone: %s", error)
        return False
    return True


def _captured_at(request: Request, sizes: tuple[int, ...]) -> Known | None:
    """The graph of a request at other sizes. None if this is not possible, or did not help."""
    if request.graph in _in_vain:
        return None
    try:
        args = at_sizes(request.graph, request.args, sizes)
        return None if args is None else Known(capture(request.graph, args), {})
    except Exception as error:  # it is not needed, whatever went wrong
        _log.debug("not captured at the sizes %s: %s", sizes, error)
        _in_vain.add(request.graph)
        return None


def _may_open(request: Request, settings: Settings) -> bool:
    """Whether a graph may be compiled for all sizes that Dynamo leaves open."""
    if request.is_observed or request.grid is not None:
        return False
    is_measured = any(map(ir.is_eager, ir.placeholders(request.graph.graph)))
    return request.has_open_sizes and settings.compiler.opens_sizes and not is_measured
