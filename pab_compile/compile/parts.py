"""Parts: captured graphs with their place in the forward, by which later graphs refer to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.join import Made, Origin, Part, are_fixed
from pab_compile.passes.graph.open_sizes import SizeInputs, closed_at
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.graph.trace import trace

from .compile_log import timed
from .request import Request
from .settings import Settings
from .trace_store import stored_trace


def captured_part(request: Request, settings: Settings) -> Part:
    """Capture the graph for its sizes, and give it an identity for the graphs behind it."""
    with timed("capture"):
        tracer = stored_trace if settings.compiler.caches_on_disk else trace
        captured = capture(request.graph, request.args, tracer)
    # A graph that is alone has no later graphs.
    place = place_of(request.origins, request.turn)
    identity = "" if request.alone else _identity_of(captured, place)
    is_fixed = bool(SizeInputs.of(request.graph).places) or are_fixed(request.origins)
    return Part(
        captured,
        request.origins,
        request.volatile,
        identity,
        is_fixed=is_fixed,
        turn=request.turn,
    )


def _identity_of(captured: fx.GraphModule, place: str) -> str:
    """The identity of a graph. Numbers that it returns do not count: some are open sizes."""
    key = structure_key(captured, returned_numbers=False)
    return hashlib.sha256(f"{key} {place}".encode()).hexdigest()


def place_of(origins: Sequence[Origin | None], turn: int) -> str:
    """What distinguishes a graph from equal graphs at other places of a forward.

    Args:
        origins: where its inputs come from.
        turn: how often it ran before in the forward with inputs of these origins.
    """
    words = [
        f"{origin.part.identity}.{_position_of(origin)}"
        if isinstance(origin, Made)
        else str(origin)
        for origin in origins
        if origin is not None
    ]
    return " ".join([*words, *([f"turn {turn}"] if turn else [])])


def _position_of(origin: Made) -> int:
    """The position of an output among the tensors that its graph returns."""
    returned: Sequence[Any] = ir.output_node(origin.part.graph_module.graph).args[0]  # type: ignore[assignment]
    return sum(isinstance(each, fx.Node) for each in returned[: origin.position])


def placed_at(
    part: Part, sizes: tuple[int, ...], origins: tuple[Origin | None, ...], alone: bool
) -> Part:
    """A captured graph with open sizes as it runs at other sizes, for the graphs behind it."""
    identity = ""
    if not alone:
        place = place_of(origins, part.turn)
        identity = _identity_of(closed_at(part.graph_module, sizes), place)
    return replace(part, origins=origins, sizes=sizes, identity=identity)
