"""Which ops multiply and sum: projections, products of activations, and whole attention calls.

Pure facts about single nodes, in one form for every op: a contraction says for each label of its
einsum equation which dimension of which operand carries it; an attention call says where its
queries, keys and values are and which of their dimensions are tokens and heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from . import ir
from .atoms import Dim, leaves

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


@dataclass(frozen=True)
class AttentionCall:
    """One op that is a whole attention; ``heads`` is None where heads are folded into the batch."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    tokens: int
    heads: int | None


_EQUATIONS = {"mm": "ik,kj->ij", "bmm": "bik,bkj->bij", "mv": "ik,k->i", "dot": "k,k->"}
_EQUATIONS |= {"_int_mm": _EQUATIONS["mm"], "_scaled_mm": _EQUATIONS["mm"]}  # quantised
_ADDED = {"addmm": "mm", "baddbmm": "bmm", "addmv": "mv"}
_SDPA = "scaled_dot_product"
_TOKENS_BEFORE_HEADS = ("_flash_attention_forward", "_efficient_attention_forward")
_CUSTOM = ("flash", "efficient", "sage", "xformers", "sdpa", _SDPA)


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
    return _parse(equation, tensors, ranks) if len(ranks) == len(operands) else None


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


def _parse(equation: str, operands: tuple[fx.Node, ...], ranks: list[int]) -> Contraction:
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
    return Contraction(
        operands,
        kept=tuple(tuple(places[label]) for label in out),
        summed=tuple(tuple(found) for label, found in places.items() if label not in out),
    )


def _labels(term: str, rank: int) -> list[str]:
    """One label per dimension; those of an ellipsis count from its right end."""
    before, ellipsis, after = term.partition("...")
    num_dots = rank - len(before) - len(after) if ellipsis else 0
    return [*before, *(str(index) for index in reversed(range(num_dots))), *after]


def attention_call(
    node: fx.Node, dims_of: Callable[[fx.Node], tuple[Dim, ...]]
) -> AttentionCall | None:
    """The attention that this one op computes, or None when it computes none.

    ``dims_of`` gives the axes of an operand; they tell tokens from heads in custom ops, whose
    layout is not part of their name.
    """
    if node.op != "call_function":
        return None
    name = ir.op_name(node)
    whole = f"{ir.op_namespace(node)}::{name}".lower()
    is_aten = ir.op_namespace(node) == "aten"
    is_custom = ("attention" in whole or "attn" in whole) and any(w in whole for w in _CUSTOM)
    known = _SDPA in name or name in _TOKENS_BEFORE_HEADS or name == "flex_attention"
    if "backward" in name or not (known or (is_custom and not is_aten)):
        return None
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and ir.tensor(arg) is not None]
    named = [node.kwargs.get(key) for key in ("query", "key", "value")]
    tensors = [arg for arg in named if isinstance(arg, fx.Node)] + tensors
    if len(tensors) < 3:
        return None
    query, key, value = tensors[:3]
    rank = len(dims_of(query))
    if rank < 2 or len(dims_of(key)) != rank or len(dims_of(value)) != rank:
        return None
    mask = ir.argument(node, 3, "attn_mask") if _SDPA in name else None
    mask = mask if isinstance(mask, fx.Node) else None
    tokens = _token_dim(name, dims_of(query), dims_of(key))
    heads = None if rank < 4 else (rank - 3 if tokens == rank - 2 else rank - 2)
    if rank == 3 and tokens == 0:
        heads = 1
    return AttentionCall(query, key, value, mask, tokens, heads)


def _token_dim(name: str, query: tuple[Dim, ...], key: tuple[Dim, ...]) -> int:
    rank = len(query)
    if name in _TOKENS_BEFORE_HEADS:
        return rank - 3
    if rank < 3 or _SDPA in name or name == "flex_attention":
        return rank - 2
    for inner, outer in ((rank - 2, rank - 3), (rank - 3, rank - 2)):
        if _is_feature(query[inner]) and not _is_feature(query[outer]):
            return outer
        if _is_feature(key[inner]) and not _is_feature(key[outer]):
            return outer
    return rank - 3 if rank == 4 else rank - 2


def _is_feature(dim: Dim) -> bool:
    """Whether a projection made this dimension (heads are a factor of its output)."""
    atoms = leaves(dim)
    return bool(atoms) and all(atom.feature and not atom.origins for atom in atoms)
