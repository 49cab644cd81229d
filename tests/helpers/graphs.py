"""Small graphs for tests of axis rules: a function of named tensors, traced op by op.

Nothing is functionalised or decomposed, so that every spelling of an op reaches its rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from pab_compile.passes.graph import ir

VIDEO = (2, 4, 3, 8, 12)  # b c t h w
PROMPT = (2, 7, 4)  # b text c


def traced(function: Callable[..., Any], **inputs: Any) -> fx.GraphModule:
    """Trace a function into a graph of ATen ops whose nodes carry fake tensors.

    Args:
        function: yields a tensor or a tuple of them. Its parameters are the graph's inputs, by
            name; those called ``w_<name>`` are weights.
        inputs: a shape or a tensor for every parameter; ``latents`` and ``prompt`` may be left out.
    """
    inputs = {"latents": VIDEO, "prompt": PROMPT} | inputs
    names = list(inspect.signature(function).parameters)
    given = (inputs[name] for name in names)
    args = [torch.zeros(arg) if isinstance(arg, tuple) else arg for arg in given]

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = function(*tensors)
        return result if isinstance(result, tuple) else (result,)

    with torch.no_grad():
        graph_module = make_fx(flat, tracing_mode="fake", pre_dispatch=True)(*args)
    for node, name in zip(ir.placeholders(graph_module.graph), names, strict=True):
        ir.set_source(node, name)
        ir.set_constant_input(node, name.startswith("w_"))
    return graph_module


def returned(graph_module: fx.GraphModule) -> list[fx.Node]:
    """What the function returned, in order."""
    return list(ir.output_node(graph_module.graph).args[0])  # type: ignore[arg-type]
