"""Names of axes. They follow from the inputs that the atoms come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .atoms import Atom, Dim, Origin, leaves, root, size

BATCH, CHANNEL, PACKED, TEXT = "b", "channel", "s", "text"
VIDEO = frozenset("thws")
"""Axes of the latents that attention can mix."""
GATHERED = "gathered"
"""Tokens of learned queries, which gathered them from other tokens."""
CACHED = "cached"
"""Tokens that a buffer of the model has from an earlier call."""


@dataclass
class Namer:
    """Names of atoms, by where they come from.

    Attributes:
        by_origin: Role of every dimension of the inputs that have token axes.
        packed: Roles of the factors that packed video tokens were split into.
        order: Inputs by the priority of their names, the latents first.
        flat: Inputs whose one dimension may contain both tokens and their channels.
    """

    by_origin: dict[tuple[int, int], str] = field(default_factory=dict)
    packed: dict[Atom, tuple[str, ...]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    flat: set[int] = field(default_factory=set)

    def name_packed(self, dim: Dim, source: str, mixed: Sequence[Sequence[Dim]]) -> list[str]:
        """Name the factors of packed video tokens: frames outside, space inside.

        Args:
            dim: the packed tokens.
            source: name of their input.
            mixed: the queries and keys of every attention. A factor that is summed over is an axis
                only if one of them has it apart from its neighbours.
        """
        notes: list[str] = []
        for top in _tops(dim):
            groups = _groups([a for a in leaves((top,)) if a.size > 1], mixed)
            if len(groups) < 2:
                continue
            space = (("h",), ("w",)) if len(groups) == 3 else (("h", "w"),) * (len(groups) - 1)
            for group, role in zip(groups, (("t",), *space), strict=True):
                for factor in group:
                    self.packed |= dict.fromkeys((factor, *_own_parts(factor, top)), role)
            sizes = "*".join(str(size(group)) for group in groups)
            notes.append(
                f"packed tokens of '{source}' are split into {sizes}: taken as frame-major, "
                "the outer factor as t, the rest as space"
            )
        return notes

    def roles(self, dim: Dim) -> tuple[str, ...]:
        """Roles of a dimension, outer to inner, each once."""
        return tuple(dict.fromkeys(r for atom in leaves(dim) for r in self._roles_of(atom, ())))

    def _roles_of(self, atom: Atom, above: tuple[Atom, ...]) -> tuple[str, ...]:
        if atom in above:
            return ()
        inside = [leaf for part in self._telling_parts(atom) for leaf in leaves(part)]
        if found := self._merged(inside, (*above, atom)):
            return found
        if atom in self.packed:
            return self.packed[atom]
        if (name := self._own_name(atom.origins)) is not None:
            is_inside = atom.contracted and not self.flat.isdisjoint(o.source for o in atom.origins)
            return (CHANNEL if is_inside else name,)
        if found := self._merged(leaves(atom.shows), (*above, atom)):
            return (GATHERED,) if atom.learned else found
        if atom.cached:
            return (CACHED,)
        return (CHANNEL,) if atom.feature else ()

    def _telling_parts(self, atom: Atom) -> list[Dim]:
        """The parts of a concatenation that give it its name.

        A single token beside many does not count, such as a timestep or the summary of a prompt. A
        token of the latents always counts.
        """
        large = [part for part in atom.parts if size(part) > 1]
        main = self.order[0] if self.order else None
        return [
            part
            for part in atom.parts
            if not large or size(part) > 1 or any(o.source == main for a in part for o in a.origins)
        ]

    def _merged(self, atoms: Sequence[Atom], above: tuple[Atom, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(r for atom in atoms for r in self._roles_of(atom, above)))

    def _own_name(self, origins: set[Origin]) -> str | None:
        by_input = {origin.source: origin.dim for origin in origins}
        for number in self.order:
            if number in by_input:
                return self.by_origin[number, by_input[number]]
        return None

    def name(self, dim: Dim) -> str:
        """A dimension as text: ``b*t``, ``text+h*w``, ``c``, or its size if unknown."""
        atoms = [atom for atom in leaves(dim) if atom.size != 1 or self._roles_of(atom, ())]
        words = [self._word(atom, alone=len(atoms) == 1) for atom in atoms]
        words = [w for i, w in enumerate(words) if i == 0 or w != words[i - 1] or w.isdigit()]
        if all(word.isdigit() for word in words):
            return str(size(dim))
        return "*".join(words)

    def _word(self, atom: Atom, alone: bool) -> str:
        if atom.parts and self._merged([a for p in atom.parts for a in leaves(p)], (atom,)):
            words = [self.name(part) for part in atom.parts]
            words = [w for i, w in enumerate(words) if i == 0 or w != words[i - 1]]
            return "+".join(words) if alone or len(words) == 1 else f"({'+'.join(words)})"
        roles = ["c" if role == CHANNEL else role for role in self._roles_of(atom, ())]
        return "*".join(roles) or str(atom.size)


def _tops(dim: Dim) -> list[Atom]:
    """An axis of an input and, if it was cut, its parts. Views may have split these atoms."""
    found = [root(atom) for atom in dim]
    for atom in found:
        found.extend(root(a) for part in atom.parts if not atom.factors for a in part)
    return found


def _groups(factors: Sequence[Atom], mixed: Sequence[Sequence[Dim]]) -> list[list[Atom]]:
    """Factors that are one axis, outer to inner.

    The inside of a patch, and of what is pooled, belongs to the axis that it was split from.
    """
    groups: list[list[Atom]] = []
    waits = False  # whether the last factor belongs to the next one
    for factor in factors:
        is_inside = factor.contracted or factor.summed
        may_join = bool(groups) and (waits or is_inside)
        if may_join and not _are_apart(groups[-1][-1], factor, mixed):
            groups[-1].append(factor)
            waits = False
        else:
            groups.append([factor])
            waits = is_inside
    return groups


def _are_apart(left: Atom, right: Atom, mixed: Sequence[Sequence[Dim]]) -> bool:
    """Whether the queries or keys of an attention run along one of two factors only."""
    for dims in mixed:
        split = [set(leaves(dim)) for dim in dims]
        together = any({left, right} <= atoms for atoms in split)
        if not together and all(any(atom in atoms for atoms in split) for atom in (left, right)):
            return True
    return False


def _own_parts(factor: Atom, top: Atom) -> list[Atom]:
    """The pieces that a factor was cut into, such as its first frame.

    Args:
        factor: the factor.
        top: the axis that it is a factor of, whose origins it has.
    """
    own = {(o.source, o.dim) for o in top.origins}
    found: list[Atom] = []
    for atom in [a for part in factor.parts for a in leaves(part)]:
        origins = {(o.source, o.dim) for o in atom.origins}
        if origins and origins <= own:
            found += [atom, *_own_parts(atom, top)]
    return found
