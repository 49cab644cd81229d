"""Capturing: a Dynamo graph as a part of its forward."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.join import Made, Origin, Part
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.graph.tracing import trace

from .compile_log import timed
from .request import Request
from .settings import Settings
from .trace_store import stored_trace


def captured(request: Request, settings: Settings) -> Part:
    """Capture the graph and give it an identity, by which later graphs refer to it."""
    with timed("capture"):
        tracer = stored_trace if settings.compiler.caches_on_disk else trace
        graph = capture(request.graph, request.args, tracer)
    # A graph that is alone has no later graphs.
    identity = "" if request.alone else f"{structure_key(graph)} {place_of(request.origins)}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return Part(graph, request.origins, request.volatile, digest)


def place_of(origins: Sequence[Origin | None]) -> str:
    """What distinguishes a graph from equal graphs at other places of a forward: its inputs."""
    words = [
        f"{origin.part.identity}.{origin.position}" if isinstance(origin, Made) else str(origin)
        for origin in origins
        if origin is not None
    ]
    return " ".join(words)
