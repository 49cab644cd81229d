"""Atoms: the smallest pieces of tensor dimensions that have one meaning.

A dimension is an ordered product of atoms, outer to inner (the frames of the latents, times their
rows). An atom may have *origins*: this dimension of that input. ``passes.axes.algebra`` splits,
cuts and unifies atoms. Dimensions are read through ``leaves``, so every dimension with an atom sees
the change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Origin(NamedTuple):
    """Where an atom comes from: a dimension of an input, and which part after splits."""

    source: int
    dim: int
    path: tuple[int, ...] = ()


@dataclass(eq=False)
class Atom:
    """One piece of a dimension.

    Attributes:
        size: Number of positions along this axis.
        origins: Dimensions of inputs that this axis is (or is a part of).
        feature: Whether the axis was made by a projection, so that it holds channels.
        contracted: Whether a projection summed over this axis, as it does over channels.
        summed: Whether a reduction summed over this axis, or took one position of it.
        shows: Atoms whose roles this one shows if it has no role of its own.
        learned: Whether its positions are learned queries, whose keys are the atoms it shows.
        cached: Whether its positions are those of a buffer that the graph writes to.
        parts: The dimensions that this axis is a concatenation of; empty if it is whole.
        factors: The product that this axis was split into; empty if it is whole.
        whole: The atom that was cut so that this one is a part of it.
        bundles: Products beginning with this axis that were cut as one axis.
        parent: The atom that this one was unified with.
    """

    size: int
    origins: set[Origin] = field(default_factory=set)
    feature: bool = False
    contracted: bool = False
    summed: bool = False
    shows: tuple[Atom, ...] = ()
    learned: bool = False
    cached: bool = False
    parts: tuple[Dim, ...] = ()
    factors: Dim = ()
    whole: Atom | None = None
    bundles: list[Atom] = field(default_factory=list)
    parent: Atom | None = None


Dim = tuple[Atom, ...]


def root(atom: Atom) -> Atom:
    """Representative of the atoms that this one was unified with."""
    top = atom
    while top.parent is not None:
        top = top.parent
    while atom.parent is not None:
        atom.parent, atom = top, atom.parent
    return top


def leaves(dim: Iterable[Atom]) -> Dim:
    """Atoms of a dimension from outer to inner, with splits resolved."""
    out: list[Atom] = []
    for atom in dim:
        top = root(atom)
        out.extend(leaves(top.factors) if top.factors else (top,))
    return tuple(out)


def size(dim: Iterable[Atom]) -> int:
    """Number of positions along a dimension."""
    return math.prod(atom.size for atom in dim)


def fresh(num: int, *, feature: bool = False, shows: Iterable[Atom] = ()) -> Dim:
    """A new dimension of this size without origin. Size 1 needs no atom."""
    return () if num == 1 else (Atom(num, feature=feature, shows=tuple(shows)),)


def like(num: int, *dims: Dim) -> Dim:
    """A new dimension that shows the roles of others (a pooled or gathered axis)."""
    shown = tuple(dict.fromkeys(atom for dim in dims for atom in dim))
    return (Atom(num, shows=shown),) if shown else fresh(num)


def seed(num: int, source: int, dim: int) -> Dim:
    """The dimension of an input. It has an atom even at size 1."""
    return (Atom(num, origins={Origin(source, dim)}),)


def sources(dim: Iterable[Atom]) -> set[int]:
    """Inputs that a dimension comes from."""
    return {origin.source for atom in leaves(dim) for origin in atom.origins}


def shown(dim: Iterable[Atom]) -> set[Atom]:
    """Atoms of a dimension, those that these show, and so on."""
    todo, found = list(leaves(dim)), set[Atom]()
    while todo:
        atom = todo.pop()
        if atom not in found:
            found.add(atom)
            todo += leaves(atom.shows)
    return found


def copier(new_size: Callable[[Atom], int | None]) -> Callable[[Dim], Dim]:
    """A function that copies dimensions and gives some of their atoms another size.

    Args:
        new_size: the size of the copy of an atom; None if that follows from its parts.
    """
    known: dict[Atom, Atom] = {}

    def copy(atom: Atom) -> Atom:
        top = root(atom)
        if top not in known:
            found = known[top] = replace(top, whole=None, bundles=[], parent=None)
            found.factors = copies(top.factors)
            found.parts = tuple(copies(part) for part in top.parts)
            found.shows = copies(top.shows)
            if (num := new_size(top)) is not None:
                found.size = num
            elif top.factors:
                found.size = size(found.factors)
            elif top.parts:
                found.size = sum(size(part) for part in found.parts)
        return known[top]

    def copies(dim: Dim) -> Dim:
        return tuple(copy(atom) for atom in dim)

    return copies


def mark_contracted(dim: Dim) -> None:
    """Record that a projection summed over this dimension."""
    for atom in leaves(dim):
        atom.contracted = True


def mark_summed(dim: Dim) -> None:
    """Record that a reduction summed over this dimension."""
    for atom in leaves(dim):
        atom.summed = True


def show(table: Dim, dim: Dim) -> None:
    """Let a table that no input feeds show the axes it meets, without unifying them.

    One table may meet frames in one place and rows in another (equal sizes, a shared buffer). So it
    is never unified with an axis that it meets. The first axis names it.
    """
    spans: list[tuple[int, int, Atom]] = []
    begin = 1
    for atom in leaves(dim):
        spans.append((begin, begin * atom.size, atom))
        begin *= atom.size
    begin = 1
    for atom in leaves(table):
        end = begin * atom.size
        if not atom.shows and not atom.origins and not atom.parts:
            atom.shows = tuple(a for low, high, a in spans if max(low, begin) < min(high, end))
        begin = end
