"""Placement: finds the dimension of a tensor that has an axis, by atoms (find)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from pab_compile.passes.axes.atoms import Atom, Dim, leaves, size
from pab_compile.passes.axes.attention_call import attention_call
from pab_compile.passes.axes.names import VIDEO
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction
from pab_compile.passes.graph.origin import source_line
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.mixer import Mixer

from .shard import Shard

HEADS = "heads"
PACKED = "packed"


@dataclass(frozen=True, eq=False)
class Axis:
    """A product of atoms that can be sharded over ranks.

    Attributes:
        name: ``t``, ``h``, ``w``, ``s`` (all tokens in one dimension), a product such as ``h*w``,
            ``packed`` or ``heads``.
        size: its number of positions.
        holds: whether an atom is a part of the axis.
        known: dimension -> its shard along the axis (what ``place`` found).
    """

    name: str
    size: int
    holds: Callable[[Atom], bool]
    known: dict[Dim, Shard | None] = field(init=False, repr=False, default_factory=dict)


def place(axes: AxisTable, node: fx.Node, axis: Axis) -> Shard | None:
    """The shard of a node's tensor along an axis; None if no dimension has the whole axis."""
    for number, dim in enumerate(axes.dims(node)):
        if dim not in axis.known:
            axis.known[dim] = _within(dim, axis)
        if (found := axis.known[dim]) is not None:
            return found.at(number)
    return None


def _within(dim: Dim, axis: Axis) -> Shard | None:
    atoms = leaves(dim)
    at = [index for index, atom in enumerate(atoms) if atom.size > 1 and axis.holds(atom)]
    if at:
        run = atoms[at[0] : at[-1] + 1]
        if size(run) != axis.size or any(a.size > 1 and not axis.holds(a) for a in run):
            return None
        return Shard(0, axis.size, size(atoms[: at[0]]), size(atoms[at[-1] + 1 :]))
    whole = [atom for atom in atoms if atom.size > 1]
    if len(whole) != 1 or not whole[0].parts:
        return None
    parts = whole[0].parts
    for index, part in enumerate(parts):
        found = _within(part, axis)
        if found is not None:
            before = found.before + sum(size(p) for p in parts[:index])
            after = found.after + sum(size(p) for p in parts[index + 1 :])
            return replace(found, before=before, after=after)
    return None


def token_axes(axes: AxisTable) -> tuple[Axis, ...]:
    """The axes of the latents that hold tokens, one by one in the order of the latents.

    The inside of a patch is no axis, because a projection sums over it.
    """
    sizes: dict[str, int] = {}
    for dim in axes.dims(axes.latents):
        for atom in leaves(dim):
            roles = axes.roles_of(atom)
            if atom.size > 1 and len(roles) == 1 and roles[0] in VIDEO and not atom.contracted:
                sizes[roles[0]] = sizes.get(roles[0], 1) * atom.size
    return tuple(_token_axis(axes, (name,), num) for name, num in sizes.items())


def products(axes: AxisTable, single: tuple[Axis, ...]) -> Iterator[Axis]:
    """Axes and their products. Those with the most factors come first."""
    for num in range(len(single), 0, -1):
        for chosen in itertools.combinations(single, num):
            total = 1
            for axis in chosen:
                total *= axis.size
            names = tuple(axis.name for axis in chosen)
            yield _token_axis(axes, names, total)


def _token_axis(axes: AxisTable, names: tuple[str, ...], num: int) -> Axis:
    wanted = frozenset(names)

    def holds(atom: Atom) -> bool:
        roles = axes.roles_of(atom)
        return bool(roles) and wanted.issuperset(roles) and not atom.contracted

    return Axis("*".join(names), num, holds)


def packed_axis(axes: AxisTable, mixers: Sequence[Mixer]) -> Axis | None:
    """The positions of one sequence that holds prompts and tokens of the latents, in any order.

    A model may scatter them into it by indices, so that no dimension shows where the tokens of the
    latents are. The axis is that of most queries.
    """
    found: dict[Atom, int] = {}
    for mixer in mixers:
        call = attention_call(mixer.nodes[0], axes.dims)
        if call is None or ir.binding(mixer.nodes[0]) != Binding.LATENT:
            continue
        atoms = [atom for atom in leaves(axes.dims(call.query)[call.tokens]) if atom.size > 1]
        if len(atoms) == 1:
            found[atoms[0]] = found.get(atoms[0], 0) + atoms[0].size
    if not found:
        return None
    most = max(found, key=found.__getitem__)
    return Axis(PACKED, most.size, frozenset([most]).__contains__)


def heads_of(axes: AxisTable, node: fx.Node) -> Axis | None:
    """The heads of an attention. If it is written out by hand, the node is its first product."""
    call = attention_call(node, axes.dims)
    if call is not None:
        if call.heads is None:
            return None
        atoms = leaves(axes.dims(call.query)[call.heads])
    elif contraction(node) is not None:
        outer = [atom for dim in axes.dims(node)[:-2] for atom in leaves(dim)]
        atoms = tuple(atom for atom in outer if atom.feature and not atom.origins)
    else:
        return None
    own = frozenset(atom for atom in atoms if atom.size > 1)
    if not own:
        return None
    return Axis(HEADS, size(own), own.__contains__)


def describe(node: fx.Node) -> str:
    """An op with the line of Python that it came from, for messages."""
    where = source_line(node)
    return f"{node.target} ({where})" if where else f"{node.target} ({node.name})"
