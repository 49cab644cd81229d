"""Residual additions: which value is added to which stream.

In ``%y = add(%x, %o)``, ``%o`` is added to the stream ``%x``. The op alone does not say which
operand is the stream. A pass looks at both readings, or says what lies before the added value.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import NamedTuple

from torch import fx

from pab_compile.passes.graph import ir

from .binding import Binding

_ADD = "add"
_ADD_OR_SUBTRACT = (_ADD, "sub", "rsub")


class Addition(NamedTuple):
    """One reading of an ``add``: a value is added to a stream."""

    stream: fx.Node
    added: fx.Node


def is_add(node: fx.Node) -> bool:
    """Whether the node adds two values."""
    return ir.is_call(node, _ADD)


def is_plain_add(node: fx.Node) -> bool:
    """Whether the node adds two tensors, each with the factor one."""
    return is_add(node) and len(node.args) == len(node.all_input_nodes) == 2 and not node.kwargs


def readings(node: fx.Node) -> tuple[Addition, ...]:
    """Both readings of an ``add`` of two values that depend on the latents; none of another op."""
    if not is_add(node) or ir.binding(node) != Binding.LATENT:
        return ()
    latent = [n for n in node.all_input_nodes if ir.binding(n) == Binding.LATENT]
    if len(latent) != 2:
        return ()
    one, other = latent
    return Addition(one, other), Addition(other, one)


def stream_of(node: fx.Node, before: Container[fx.Node]) -> fx.Node | None:
    """The stream that a node adds to or subtracts from; None where it does neither.

    Args:
        node: any node.
        before: what the added value is computed from. The stream is one of these, no constant.
    """
    if not ir.is_call(node, *_ADD_OR_SUBTRACT):
        return None
    sources = [n for n in node.all_input_nodes if ir.binding(n) != Binding.CONSTANT]
    return next((n for n in sources if n in before), None)


def terms(node: fx.Node, depth: int = 3) -> Iterator[fx.Node]:
    """A value and, where it is a sum, the values that were added up to it."""
    yield node
    if depth and is_add(node):
        for operand in node.all_input_nodes:
            yield from terms(operand, depth - 1)
