"""Axes of small functions, read off the names of their outputs' dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from helpers.graphs import returned, traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.axes.table import AxisTable


def inferred(
    function: Callable[..., Any], stated: Mapping[str, str] | None = None, **inputs: Any
) -> tuple[AxisTable, list[str]]:
    """Axes of a function, and the names of its outputs' dimensions, one string per output."""
    graph_module = traced(function, **inputs)
    table = infer_axes(graph_module, stated)
    return table, [", ".join(table.names(node)) for node in returned(graph_module)]


def named(function: Callable[..., Any], **inputs: Any) -> str:
    """Names of the one output's dimensions, or of all outputs with ``|`` between."""
    return " | ".join(inferred(function, **inputs)[1])


def tokens(latents: torch.Tensor) -> torch.Tensor:
    """``[b, t*h*w, c]`` of latents of the usual shape."""
    return latents.permute(0, 2, 3, 4, 1).reshape(2, 288, 4)
