"""Kernels that a model chooses for an attention: they become an argument of its op.

Before::

    _sdpa_kernel([MATH])                      # enters sdpa_kernel(SDPBackend.MATH)
    %y = scaled_dot_product_attention(%q, %k, %v)
    _sdpa_kernel([FLASH_ATTENTION, MATH, ...])    # leaves it

After::

    %y = pab_compile.scaled_dot_product_attention(%q, %k, %v, kernels=["MATH"])

A tracer keeps no call that only sets flags. The op of this library sets them around the attention,
also when the inner compiler traces it. So the kernel is the one that the model asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from . import ir

_SET = "_sdpa_kernel"
_NAMES = "_backend_from_string"
_ATTENTION = "scaled_dot_product_attention"

_library = torch.library.Library("pab_compile", "FRAGMENT")
_library.define(
    f"{_ATTENTION}(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, "
    "float dropout_p=0.0, bool is_causal=False, *, float? scale=None, bool enable_gqa=False, "
    "str[] kernels, bool in_order=False) -> Tensor"
)


def attention_by(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    kernels: Sequence[str],
    in_order: bool = False,
) -> torch.Tensor:
    """Scaled dot product attention by one of some kernels.

    Args:
        query: (..., heads, tokens, features), as the other operands.
        key: as for torch's function.
        value: likewise.
        attn_mask: likewise.
        dropout_p: likewise.
        is_causal: likewise.
        scale: likewise.
        enable_gqa: likewise.
        kernels: names of ``torch.nn.attention.SDPBackend``.
        in_order: whether earlier kernels are preferred.

    Raises:
        RuntimeError: none of the kernels can compute it.
    """
    with sdpa_kernel([getattr(SDPBackend, name) for name in kernels], set_priority=in_order):
        return scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


_library.impl(_ATTENTION, attention_by, "CompositeImplicitAutograd")


class _Setting(NamedTuple):
    """The kernels that a call allows, and whether it also says which are preferred."""

    kernels: tuple[str, ...]
    in_order: bool


def state_kernels(static_graph: fx.GraphModule) -> int:
    """Move the kernels that regions of a graph choose into their attentions; returns how many.

    Args:
        static_graph: a graph of Dynamo, which leaves every region that it enters. Changed in
            place: its attentions state their kernels, and its regions are gone.
    """
    graph = static_graph.graph
    settings = {node: _setting(node) for node in graph.nodes if ir.is_call(node, _SET)}
    if not settings:
        return 0
    usual, usual_order = _around(list(settings.values()))
    allowed, order = usual, usual_order
    num_stated = 0
    for node in list(graph.nodes):
        if node in settings:
            allowed, in_order = settings[node]
            order = allowed if in_order else order
        elif ir.is_call(node, _ATTENTION) and (set(allowed) != set(usual) or order != usual_order):
            _state(node, _Setting(_sorted(allowed, order), order != usual_order))
            num_stated += 1
    _erase(graph, _SET)
    _erase(graph, _NAMES)
    graph.lint()
    static_graph.recompile()
    return num_stated


def _setting(node: fx.Node) -> _Setting:
    given, in_order = node.args
    assert isinstance(given, (list, tuple))
    return _Setting(tuple(str(name.args[0]) for name in given), bool(in_order))  # type: ignore[union-attr]


def _around(settings: Sequence[_Setting]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The kernels that hold around the graph, and their order: what the last calls restore."""
    order = next((each.kernels for each in reversed(settings) if each.in_order), ())
    return settings[-1].kernels, order


def _sorted(kernels: Sequence[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(kernels, key=lambda name: [*order, name].index(name)))


def _state(node: fx.Node, setting: _Setting) -> None:
    """Let an attention be by the kernels of a setting."""
    stated = {"kernels": list(setting.kernels), "in_order": setting.in_order}
    node.target = torch.ops.pab_compile.scaled_dot_product_attention.default
    node.kwargs = {**node.kwargs, **stated}


def _erase(graph: fx.Graph, name: str) -> None:
    for node in reversed(graph.nodes):
        if ir.is_call(node, name) and not node.users:
            graph.erase_node(node)
