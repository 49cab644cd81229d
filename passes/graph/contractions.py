"""Contractions: ops that multiply and sum, such as projections and products of activations.

All these ops have one form. For each label of its einsum equation, a contraction says which
dimension of which operand has that label.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from torch import fx

from . import ir

Place = tuple[int, int]
"""An operand's position and one of its dimensions."""


@dataclass(frozen=True)
class Contraction:
    """A product of tensors summed over some dimensions.

    Attributes:
        operands: The tensors that are multiplied.
        kept: For every output dimension, the places it comes from.
        summed: For every dimension that is summed over, the places it comes from.
    """

    operands: tuple[fx.Node, ...]
    kept: tuple[tuple[Place, ...], ...]
    summed: tuple[tuple[Place, ...], ...]


_EQUATIONS = {"mm": "ik,kj->ij", "bmm": "bik,bkj->bij", "mv": "ik,k->i", "dot": "k,k->"}
_EQUATIONS |= {"_int_mm": _EQUATIONS["mm"], "_scaled_mm": _EQUATIONS["mm"]}  # quantised
_ADDED = {"addmm": "mm", "baddbmm": "bmm", "addmv": "mv"}


def contraction(node: fx.Node) -> Contraction | None:
    """The contraction that this node computes, or None when it is no contraction."""
    name = ir.op_name(node) if node.op == "call_function" else ""
    if name == "einsum":
        operands = tuple(ir.argument(node, 1, "tensors", ()))
        equation = str(node.args[0]).replace(" ", "")
    elif name == "linear":
        operands = (node.args[0], node.args[1])
        equation = "...k,jk->...j"
    elif name == "matmul":
        operands = (node.args[0], node.args[1])
        equation = _matmul_equation(operands)
    elif name in _EQUATIONS:
        operands = (node.args[0], node.args[1])
        equation = _EQUATIONS[name]
    elif name in _ADDED:
        operands = (node.args[1], node.args[2])
        equation = _EQUATIONS[_ADDED[name]]
    else:
        return None
    tensors = tuple(operand for operand in operands if isinstance(operand, fx.Node))
    ranks = [tensor.ndim for node in tensors if (tensor := ir.tensor(node)) is not None]
    if len(ranks) < len(operands):
        return None
    return Contraction(tensors, *_parse(equation, tuple(ranks)))


def _matmul_equation(operands: tuple[object, ...]) -> str:
    """Equation of ``matmul``, whose 1D operands have no row or no column."""
    left, right = (
        tensor.ndim if isinstance(node, fx.Node) and (tensor := ir.tensor(node)) is not None else 2
        for node in operands
    )
    rows, columns = ("i" if left > 1 else ""), ("j" if right > 1 else "")
    head, tail = ("..." if left > 2 else ""), ("..." if right > 2 else "")
    both = "..." if head or tail else ""
    return f"{head}{rows}k,{tail}k{columns}->{both}{rows}{columns}"


@functools.lru_cache(maxsize=1024)
def _parse(equation: str, ranks: tuple[int, ...]) -> tuple[tuple[tuple[Place, ...], ...], ...]:
    """The places that dimensions of the output come from, and those of what is summed over."""
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    places: dict[str, list[Place]] = {}
    for index, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        for dim, label in enumerate(_labels(term, rank)):
            places.setdefault(label, []).append((index, dim))
    dots = sorted(label for label in places if label.isdigit())
    if arrow:
        before, ellipsis, after = right.partition("...")
        out = [*before, *(reversed(dots) if ellipsis else ()), *after]
    else:
        out = [*reversed(dots), *sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)]
    kept = tuple(tuple(places[label]) for label in out)
    return kept, tuple(tuple(found) for label, found in places.items() if label not in out)


def _labels(term: str, rank: int) -> list[str]:
    """One label per dimension; those of an ellipsis count from its right end."""
    before, ellipsis, after = term.partition("...")
    num_dots = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(str(index) for index in reversed(range(num_dots))), *after]
