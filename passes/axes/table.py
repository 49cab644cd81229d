"""The table of axes: what every dimension of every tensor in a graph is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from pab_compile.passes.graph import ir

from .atoms import Atom, copier, leaves, size
from .names import Namer
from .trace import Dims, Outputs


@dataclass(frozen=True)
class AxisTable:
    """Axes of every tensor of one graph.

    Attributes:
        latents: Placeholder of the tensor that the model denoises, the first of several.
        siblings: Placeholders of the tensors that are denoised with it.
        sources: Name of the token axis of every other input that has one.
        notes: What was not certain in the inference, in English.
    """

    latents: fx.Node
    siblings: tuple[fx.Node, ...]
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    _dims: Mapping[fx.Node, Dims | Outputs | None] = field(repr=False)
    _namer: Namer = field(repr=False)
    _roles: dict[Atom, tuple[str, ...]] = field(init=False, repr=False, default_factory=dict)

    def dims(self, node: fx.Node) -> Dims:
        """Dimensions of a node that yields one tensor; empty for any other node."""
        found = self._dims.get(node)
        return found if isinstance(found, tuple) else ()

    @property
    def frame_major(self) -> bool:
        """Whether ``t``, ``h`` and ``w`` are factors of packed tokens, named by their order."""
        return bool(self._namer.packed)

    def roles(self, node: fx.Node, dim: int) -> tuple[str, ...]:
        """Axes that one dimension consists of, outer to inner, without unnamed parts.

        Returns:
            Some of ``b``, ``t``, ``h``, ``w``, ``s`` (packed video tokens), ``text`` or another
            input's name, and ``channel``.
        """
        dims = self.dims(node)
        return self._namer.roles(dims[dim]) if dims else ()

    def roles_of(self, atom: Atom) -> tuple[str, ...]:
        """Axes that one atom of a dimension stands for."""
        if (found := self._roles.get(atom)) is None:
            found = self._roles[atom] = self._namer.roles((atom,))
        return found

    def seen_from(self, stand_ins: Mapping[fx.Node, fx.Node]) -> AxisTable:
        """The same axes for the nodes of another graph.

        Args:
            stand_ins: node of the other graph -> the node in its place in this graph.
        """
        known = {node: self._dims.get(node) for node in (self.latents, *self.siblings)}
        seen = {node: self._dims.get(stand_in) for node, stand_in in stand_ins.items()}
        dims = {**known, **seen}
        return replace(self, _dims=dims)

    def narrowed(
        self, stand_ins: Mapping[fx.Node, fx.Node], new_size: Callable[[Atom], int | None]
    ) -> AxisTable:
        """The axes of another graph's nodes as well, in which some axes are shorter.

        Args:
            stand_ins: node of the other graph -> the node of this one whose axes it has.
            new_size: the size of an atom there; None if it is the same.
        """
        copies = copier(new_size)
        namer = self._namer
        packed = {copies((atom,))[0]: roles for atom, roles in namer.packed.items()}
        dims = dict(self._dims)
        for node, full in stand_ins.items():
            if (shape := ir.shape(node)) is None:
                continue
            found = tuple(copies(dim) for dim in self.dims(full))
            for known in (found, self.dims(full)):  # a replicated tensor keeps its size
                if tuple(size(leaves(dim)) for dim in known) == shape:
                    dims[node] = known
                    break
        return replace(self, _dims=dims, _namer=replace(namer, packed={**namer.packed, **packed}))

    def names(self, node: fx.Node) -> tuple[str, ...]:
        """One printable name per dimension, such as ``("b*t", "h*w", "c")``."""
        return tuple(self._namer.name(dim) for dim in self.dims(node))
