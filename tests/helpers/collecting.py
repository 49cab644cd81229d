"""A backend that collects what Dynamo gives it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from pab_compile.dynamo_rules import follows_more


def collecting(is_marked: bool) -> tuple[Callable[..., Any], list[fx.GraphModule]]:
    """A backend that runs graphs as they are, and the graphs that it got.

    Args:
        is_marked: whether Dynamo follows as much for it as for this library's backend.
    """
    graphs: list[fx.GraphModule] = []

    def backend(graph_module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph_module)
        return graph_module.forward

    return (follows_more(backend) if is_marked else backend), graphs
