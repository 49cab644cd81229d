"""State of an axis inference: the axes of every tensor so far, and how dimensions meet.

Rules (``passes.axes.rules``) read the axes of operands here and let dimensions meet. The driver
(``passes.axes.infer``) stores the axes that they return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.measured import unknown_sizes

from .algebra import unify
from .atoms import Atom, Dim, fresh, leaves, show, size, sources

Dims = tuple[Dim, ...]
Outputs = list[Dims | None]


@dataclass
class Trace:
    """State of one inference over one graph.

    Attributes:
        dims: Axes of every tensor so far; a list for an op with several outputs.
        feeds: Inputs (by number; parameters do not count) that a node's value depends on.
        main: Inputs that have token axes of their own: the latents, prompts, other conditions.
        projected: Dimensions that each projection summed over, in order.
        mixed: Axes of the queries and keys of attentions, and of other activations multiplied.
        clashes: Meetings of two dimensions that cannot be the same axis.
        unknown: Nodes whose op has no rule that fits.
        guessed: Nodes whose op is taken for an attention, whatever its name.
    """

    dims: dict[fx.Node, Dims | Outputs | None] = field(default_factory=dict)
    feeds: dict[fx.Node, frozenset[int]] = field(default_factory=dict)
    main: frozenset[int] = frozenset()
    projected: list[tuple[fx.Node, Dims]] = field(default_factory=list)
    mixed: list[Dims] = field(default_factory=list)
    clashes: list[tuple[fx.Node, Dim, Dim]] = field(default_factory=list)
    unknown: list[fx.Node] = field(default_factory=list)
    guessed: list[fx.Node] = field(default_factory=list)

    def of(self, node: fx.Node) -> Dims:
        """Axes of a node that yields one tensor."""
        found = self.dims.get(node)
        return found if isinstance(found, tuple) else ()

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Tensor arguments of known sizes, each once."""
        return [arg for arg in node.all_input_nodes if isinstance(self.dims.get(arg), tuple)]

    def meet(self, node: fx.Node, pairs: Sequence[tuple[Dim, fx.Node]], num: int) -> Dim:
        """The axis that dimensions of these operands share in an output of this size.

        Dimensions of size 1 broadcast. Operands that inputs feed are unified. Tables that only
        parameters feed show the axes that they meet, and unify nothing.
        """
        full = [(dim, operand) for dim, operand in pairs if size(dim) == num and dim]
        if not full or num == 0:
            return fresh(num)
        fed = [pair for pair in full if self.feeds[pair[1]]]
        best, owner = max(fed or full, key=lambda pair: self._certainty(*pair))
        for dim, operand in fed or full:
            if dim is best or self._is_hearsay(best, owner, dim, operand):
                continue
            if not unify(best, dim) and num != 1:
                self.clashes.append((node, best, dim))
        for dim, operand in full:
            if fed and not self.feeds[operand]:
                show(dim, best)
        return best

    def _certainty(self, dim: Dim, operand: fx.Node) -> tuple[int, int]:
        """How certain the axis of a dimension is: from its own inputs, from a meeting, or unknown.

        Among equals, a dimension that also has an axis of size 1 is more certain.
        """
        found = sources(dim)
        num_units = sum(atom.size == 1 for atom in leaves(dim))
        return (2 if found & self.feeds[operand] else int(bool(found))), num_units

    def _is_hearsay(self, left: Dim, owner: fx.Node, right: Dim, operand: fx.Node) -> bool:
        """Whether one side has its axis only from an earlier meeting, and the other differs."""
        a, b = sources(left) & self.main, sources(right) & self.main
        if not a or not b or a & b:
            return False
        return bool(a - self.feeds[owner] or b - self.feeds[operand])


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Sizes of a tensor, or None where a node yields none or a size is known only at run time."""
    return output_shapes(node)[0] if ir.tensor(node) is not None else None


def output_shape(node: fx.Node) -> tuple[int, ...]:
    """Sizes of a node that yields one tensor of known sizes."""
    shape = shape_of(node)
    assert shape is not None, f"{node.name} yields no tensor of known sizes"
    return shape


def output_shapes(node: fx.Node) -> list[tuple[int, ...] | None]:
    """Sizes of every value of a node, each None where ``shape_of`` is."""
    val = ir.value(node)
    vals = val if isinstance(val, (list, tuple)) else [val]
    layouts = iter(ir.layouts(node))
    sizes = [next(layouts).sizes if isinstance(v, torch.Tensor) else None for v in vals]
    return [
        None if size is None or unknown_sizes(v) else size
        for size, v in zip(sizes, vals, strict=True)
    ]


def anew(shape: Iterable[int], *, cached: bool = False) -> Dims:
    """New axes for a tensor of this shape, those of a buffer that is written to if ``cached``."""
    return tuple((Atom(num, cached=True),) if cached else fresh(num) for num in shape)


def first(node: fx.Node) -> fx.Node:
    """The tensor that an op works on, its first."""
    found = node.args[0] if node.args else next(iter(node.kwargs.values()))
    found = found[0] if isinstance(found, (list, tuple)) else found
    return found if isinstance(found, fx.Node) else node.all_input_nodes[0]


def wrap(dim: Any, rank: int) -> int:
    """A dimension counted from the front."""
    return int(dim) % max(rank, 1)
