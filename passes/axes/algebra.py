"""Operations on atoms: they are split, cut, concatenated and unified.

* *split* into a product of smaller atoms, when a view looks inside (``72 -> 3 * 4 * 6``),
* *cut* into a concatenation of parts, when a slice looks inside (``79 -> 7 + 72``),
* *unified* with another atom, when two dimensions meet elementwise (union-find).

Equal boundaries give identical atoms, in any order of operations. A split where tensors were
concatenated recovers them exactly. Pieces that are concatenated again are the whole atom. Atoms of
different dimensions of one input are never unified, even if their sizes are equal.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .atoms import Atom, Dim, Origin, leaves, like, root, shown, size, sources


def split(atom: Atom, outer: int) -> None:
    """Split a whole atom into ``outer`` times the rest."""
    inner = atom.size // outer
    assert not atom.factors and outer * inner == atom.size and outer > 1 and inner > 1
    if atom.parts and (factors := _factor_parts(atom, inner)):
        atom.factors = factors
        return
    shows = tuple(a for part in atom.parts for a in part) if atom.parts else atom.shows
    atom.factors = tuple(
        Atom(
            num,
            {Origin(o.source, o.dim, (*o.path, index)) for o in atom.origins},
            atom.feature,
            atom.contracted,
            atom.summed,
            shows,
            atom.learned,
            atom.cached,
        )
        for index, num in enumerate((outer, inner))
    )


def _factor_parts(atom: Atom, inner: int) -> Dim:
    """``(a, s) + (b, s)`` as ``(a + b, s)`` when every part ends in an axis of size ``inner``."""
    if any(size(part) % inner for part in atom.parts):
        return ()
    halves = [regroup([part], (size(part) // inner, inner)) for part in atom.parts]
    if any(half is None for half in halves):
        return ()
    tails = [half[1] for half in halves if half is not None]
    known = [found for tail in tails if (found := sources(tail))]
    related = all(known[0] & found for found in known)
    if related and all(mergeable(tails[0], tail) for tail in tails[1:]):
        for tail in tails[1:]:
            unify(tails[0], tail)
        common = tails[0]
    else:
        common = like(inner, *tails)
    return (*concat([half[0] for half in halves if half is not None]), *common)


def concat(dims: Sequence[Dim]) -> Dim:
    """The dimension of a concatenation. Parts of one cut atom become that atom again."""
    stack: list[Dim] = []
    for dim in dims:
        if size(dim) == 0:
            continue
        for part in _pieces(tuple(root(atom) for atom in dim) or (Atom(1),)):
            stack.append(part)
            while (whole := _rejoined(stack)) is not None:
                del stack[len(stack) - len(whole.parts) :]
                stack.append((whole,))
    if len(stack) <= 1:
        return stack[0] if stack else (Atom(0),)
    resolved = [leaves(dim) for dim in stack]
    num_shared = 0
    while all(
        len(dim) > num_shared and dim[-1 - num_shared] is resolved[0][-1 - num_shared]
        for dim in resolved
    ):
        num_shared += 1
    if num_shared and size(resolved[0][len(resolved[0]) - num_shared :]) > 1:
        tail = resolved[0][len(resolved[0]) - num_shared :]
        heads = [dim[: len(dim) - num_shared] for dim in resolved]
        if all(size(head) == 1 for head in heads):
            return (*like(len(heads), *heads), *tail)
        return (*concat(heads), *tail)
    return (Atom(sum(size(dim) for dim in stack), parts=tuple(stack)),)


def _pieces(dim: Dim) -> tuple[Dim, ...]:
    """The parts of an earlier concatenation. Any other dimension is its only piece."""
    atom = dim[0]
    earlier = len(dim) == 1 and atom.parts and not atom.factors and not atom.origins
    return atom.parts if earlier and atom.whole is None else (dim,)


def _rejoined(stack: list[Dim]) -> Atom | None:
    """The atom whose parts, in order, are the last entries of the stack."""
    whole = stack[-1][0].whole if len(stack[-1]) == 1 else None
    if whole is None or root(whole) is not whole or len(stack) < len(whole.parts):
        return None
    tail = stack[len(stack) - len(whole.parts) :]
    same = all(
        len(have) == len(want) and all(a is root(b) for a, b in zip(have, want, strict=True))
        for have, want in zip(tail, whole.parts, strict=True)
    )
    return whole if same else None


def cut(dim: Dim, start: int, stop: int) -> Dim:
    """The positions ``start:stop`` of a dimension. Equal boundaries give identical atoms."""
    if start == 0 and stop == size(dim):
        return dim
    if stop <= start:
        return (Atom(0),)
    atoms = [root(atom) for atom in dim]
    while atoms[0].size == 1:
        atoms.pop(0)
    outer, rest = atoms[0], tuple(atoms[1:])
    inner = size(rest)
    if start % inner == 0 and stop % inner == 0:
        first, last = start // inner, stop // inner
        if not outer.factors or {first, last} <= _boundaries(outer):
            return (*_cut_atom(outer, first, last), *rest)
    if outer.factors:
        return cut((*leaves((outer,)), *rest), start, stop)
    return _cut_atom(_bundle(leaves(atoms)), start, stop)


def _bundle(product: Dim) -> Atom:
    """One atom for a product that is cut inside its inner axes. It is the same one every time."""
    known = product[0].bundles
    for atom in known:
        if leaves((atom,)) == product:
            return atom
    known.append(Atom(size(product), shows=product, factors=product))
    return known[-1]


def _boundaries(atom: Atom) -> set[int]:
    """Positions at which the parts of an atom begin or end."""
    found, offset = {0}, 0
    for part in atom.parts:
        offset += size(part)
        found.add(offset)
    return found if atom.parts else set()


def _cut_atom(atom: Atom, start: int, stop: int) -> Dim:
    """The positions ``start:stop`` of one atom. A whole atom is cut there."""
    if start == 0 and stop == atom.size:
        return (atom,)
    if not atom.parts:
        points = sorted({0, start, stop, atom.size})
        atom.parts = tuple(
            (
                Atom(
                    b - a,
                    set(atom.origins),
                    atom.feature,
                    atom.contracted,
                    atom.summed,
                    atom.shows,
                    atom.learned,
                    atom.cached,
                    whole=atom,
                ),
            )
            for a, b in itertools.pairwise(points)
        )
    chosen: list[Dim] = []
    offset = 0
    for part in atom.parts:
        num = size(part)
        low, high = max(start - offset, 0), min(stop - offset, num)
        if low < high:
            chosen.append(cut(part, low, high))
        offset += num
    return concat(chosen)


def regroup(dims: Sequence[Dim], shape: Sequence[int]) -> list[Dim] | None:
    """Dimensions of a view of this shape, or None if its boundaries do not fit the atoms.

    ``[(b), (t, h, w)] -> (b*t, h*w)`` gives ``[(b, t), (h, w)]``. Atoms are split where the view
    has a boundary inside them.
    """
    flat = [(atom, index) for index, dim in enumerate(dims) for atom in leaves(dim)]
    if not _divides([atom.size for atom, _ in flat], shape):
        return None
    out: list[Dim] = []
    for index, num in enumerate(shape):
        current: list[tuple[Atom, int]] = []
        have = 1
        while have < num:
            atom, origin = flat[0]
            if num % (have * atom.size):
                if num % have or atom.size % (num // have):
                    return None
                split(atom, num // have)
                flat[:1] = [(leaf, origin) for leaf in leaves((atom,))]
                continue
            current.append(flat.pop(0))
            have *= atom.size
        remaining = shape[index + 1 :]
        while flat and flat[0][0].size == 1 and _keeps_unit(current, flat, num, remaining):
            current.append(flat.pop(0))
        out.append(tuple(atom for atom, _ in current))
    tops = [root(atom) for dim in dims for atom in dim]
    return [_folded(dim, [top for top in tops if top.factors and top.parts]) for dim in out]


def _folded(dim: Dim, tops: Sequence[Atom]) -> Dim:
    """A product in which split concatenations that are whole again are what they were.

    Their factors no longer show where one part ends and the next one begins.
    """
    for top in tops:
        factors = leaves((top,))
        num = len(factors)
        for at in range(len(dim) - num + 1):
            if dim[at : at + num] == factors:
                dim = (*dim[:at], top, *dim[at + num :])
                break
    return dim


def regroup_loosely(dims: Sequence[Dim], shape: Sequence[int]) -> tuple[list[Dim], Dim]:
    """Dimensions of any view, and the atoms that it mixes.

    Boundaries may not fit the atoms (``6 * 4 -> 8 * 3``). The dimensions concerned only show the
    roles of the atoms that they mix.
    """
    exact = regroup(dims, shape)
    if exact is not None:
        return exact, ()
    flat = [atom for dim in dims for atom in leaves(dim)]
    out: list[Dim] = []
    mixed: list[Atom] = []
    first = 0
    while first < len(shape):
        last, num = first + 1, shape[first]
        group = [flat.pop(0)] if flat else []
        while num != size(group) and (flat or last < len(shape)):
            if (size(group) < num and flat) or last == len(shape):
                group.append(flat.pop(0))
            else:
                num *= shape[last]
                last += 1
        found = regroup([tuple(group)], shape[first:last])
        if found is None:
            mixed += group
            found = [like(n, tuple(group)) if n != 1 else () for n in shape[first:last]]
        out += found
        first = last
    return out, tuple(mixed)


def _divides(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether sizes and shape split one another at every step, from outer to inner."""
    left, right = [n for n in sizes if n != 1], [n for n in shape if n != 1]
    while left and right:
        low, high = sorted((left[0], right[0]))
        if low == 0 or high % low:
            return False
        for side in (left, right):
            side[0] //= low
            if side[0] == 1:
                side.pop(0)
    return not left and not right


def _keeps_unit(
    current: list[tuple[Atom, int]],
    flat: list[tuple[Atom, int]],
    num: int,
    remaining: Sequence[int],
) -> bool:
    """Whether an atom of size 1 belongs to the dimension just filled, or to the next.

    The view does not say. The atom stays with those that it shared a dimension with. Otherwise it
    stays with those of the same input. Each atom has the number of the dimension it was in.
    """
    if not remaining:
        return True
    num_units = next((i for i, (atom, _) in enumerate(flat) if atom.size != 1), len(flat))
    num_unit_dims = next((i for i, n in enumerate(remaining) if n != 1), len(remaining))
    if num_unit_dims or num == 1:
        return num == 1 and num_units > num_unit_dims
    unit, origin = flat[0]
    before, after = current[-1:], flat[num_units : num_units + 1]
    together = [any(index == origin for _, index in side) for side in (before, after)]
    if together[0] is not together[1]:
        return together[0]
    mine, first, last = (sources(a for a, _ in side) for side in ([(unit, 0)], current, after))
    return bool(mine & first) or not mine & last


def mergeable(left: Dim, right: Dim) -> bool:
    """Whether two dimensions can be the same axis: their sizes fit and their origins agree."""
    a, b = [[n for n in leaves(dim) if n.size != 1] for dim in (left, right)]
    if not _divides([n.size for n in a], [n.size for n in b]):
        return False
    if len(a) == len(b) and all(x.size == y.size for x, y in zip(a, b, strict=True)):
        return not any(_conflict(x, y) for x, y in zip(a, b, strict=True))
    return True


def _conflict(left: Atom, right: Atom) -> bool:
    """Whether two atoms come from different dimensions, or different factors, of one input."""
    if left is right:
        return False
    return any(
        a.source == b.source
        and (a.dim != b.dim or any(x != y for x, y in zip(a.path, b.path, strict=False)))
        for a in left.origins
        for b in right.origins
    )


def unify(left: Dim, right: Dim) -> bool:
    """Make two dimensions the same axis as far as they agree; False if some part does not."""
    a = [atom for atom in leaves(left) if atom.size != 1]
    b = [atom for atom in leaves(right) if atom.size != 1]
    if not a and not b:
        units = [leaves(dim) for dim in (left, right)]
        return all(_merge(x, y) for x, y in zip(*units, strict=False))
    if not _divides([atom.size for atom in a], [atom.size for atom in b]):
        return False
    agreed = True
    while a and b:
        x, y = root(a[0]), root(b[0])
        low, high = sorted((x.size, y.size))
        if x.factors or y.factors:
            a[:1], b[:1] = leaves((x,)), leaves((y,))
        elif high % low:
            return False
        elif x.size > y.size:
            split(x, y.size)
        elif y.size > x.size:
            split(y, x.size)
        else:
            agreed = _merge(x, y) and agreed
            a.pop(0)
            b.pop(0)
    return agreed


def _merge(left: Atom, right: Atom) -> bool:
    """Unify two whole atoms of one size.

    An atom that shows the other was picked from it, perhaps among other axes. These others tell
    nothing about it.
    """
    left, right = root(left), root(right)
    if left is right:
        return True
    if _conflict(left, right):
        return False
    keep, gone = (right, left) if right.parts and not left.parts else (left, right)
    agreed = True
    if gone.parts:
        points = sorted(_boundaries(keep) | _boundaries(gone))
        for start, stop in itertools.pairwise(points):
            agreed = unify(cut((keep,), start, stop), cut((gone,), start, stop)) and agreed
    elif keep.parts:
        for part in keep.parts:
            _add_origins(part, gone.origins)
    if root(keep) is not keep or root(gone) is not gone or keep is gone:
        return agreed
    both = ((keep, gone), (gone, keep))
    shows = tuple(a for atom, other in both if other not in shown(atom.shows) for a in atom.shows)
    gone.parent = keep
    keep.origins |= gone.origins
    keep.whole = keep.whole or gone.whole
    keep.bundles += gone.bundles
    keep.feature |= gone.feature
    keep.contracted |= gone.contracted
    keep.summed |= gone.summed
    keep.shows = shows
    return agreed


def _add_origins(dim: Dim, origins: set[Origin]) -> None:
    """Record for all parts of a concatenation that an input runs along them."""
    for atom in leaves(dim):
        own = {o.source for o in atom.origins}
        atom.origins |= {origin for origin in origins if origin.source not in own}
        for part in atom.parts:
            _add_origins(part, origins)
