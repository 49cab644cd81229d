"""Ops that are whole attentions: where queries, keys and values are, and which dim holds tokens.

For an op outside ATen, the axes of its operands show the layout. If its name does not sound like
attention, its place between projections may show that it is one (``passes.axes.attention_place``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.graph import ir

from .atoms import Dim, leaves
from .attention_place import stands_as_attention

_SDPA = "scaled_dot_product"


_TOKENS_BEFORE_HEADS = ("_flash_attention_forward", "_efficient_attention_forward")


_CUSTOM = ("flash", "efficient", "sage", "xformers", "sdpa", _SDPA)


@dataclass(frozen=True)
class AttentionCall:
    """One op that is a whole attention.

    Attributes:
        query: its queries.
        key: its keys.
        value: its values.
        mask: its mask, or None.
        tokens: the dimension of tokens.
        heads: the dimension of heads; None where they are folded into the batch.
        guessed: whether only the op's operands and place show that it is an attention.
    """

    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    tokens: int
    heads: int | None
    guessed: bool = False


def attention_call(
    node: fx.Node, dims_of: Callable[[fx.Node], tuple[Dim, ...]]
) -> AttentionCall | None:
    """The attention that this one op computes, or None when it computes none.

    Args:
        node: any node.
        dims_of: gives the axes of an operand. In custom ops, whose name does not show the layout,
            these distinguish tokens from heads.
    """
    if node.op != "call_function":
        return None
    name = ir.op_name(node)
    named_so = _is_named_so(ir.op_namespace(node), name)
    if "backward" in name or not (named_so or ir.is_foreign(node)):
        return None
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node) and ir.tensor(arg) is not None]
    for names in (("query", "key", "value"), ("q", "k", "v")):
        named = [node.kwargs.get(key) for key in names]
        tensors = [arg for arg in named if isinstance(arg, fx.Node)] + tensors
    if len(tensors) < 3:
        return None
    query, key, value = tensors[:3]
    rank = len(dims_of(query))
    if rank < 2 or len(dims_of(key)) != rank or len(dims_of(value)) != rank:
        return None
    if not named_so and not stands_as_attention(node, (query, key, value), dims_of):
        return None
    mask = ir.argument(node, 3, "attn_mask") if _SDPA in name else None
    mask = mask if isinstance(mask, fx.Node) else None
    tokens = _token_dim(name, dims_of(query), dims_of(key))
    heads = None if rank < 4 else (rank - 3 if tokens == rank - 2 else rank - 2)
    if rank == 3 and tokens == 0:
        heads = 1
    return AttentionCall(query, key, value, mask, tokens, heads, guessed=not named_so)


@functools.lru_cache(maxsize=1024)
def _is_named_so(namespace: str, name: str) -> bool:
    """Whether the name of an op says that it is an attention."""
    if _SDPA in name or name in _TOKENS_BEFORE_HEADS or name == "flex_attention":
        return True
    whole = f"{namespace}::{name}".lower()
    is_custom = ("attention" in whole or "attn" in whole) and any(w in whole for w in _CUSTOM)
    return is_custom and namespace != "aten"


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
    if not query[rank - 3] and query[rank - 2]:
        return rank - 2  # a single head, in front of the tokens
    return rank - 3 if rank == 4 else rank - 2


def _is_feature(dim: Dim) -> bool:
    """Whether a projection made this dimension (heads are a factor of its output)."""
    atoms = leaves(dim)
    return bool(atoms) and all(atom.feature and not atom.origins for atom in atoms)
