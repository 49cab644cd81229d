"""Where an axis is in a tensor. Equal blocks ask for the same dimensions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from pab_compile.passes.axes.atoms import Atom, Dim
from pab_compile.passes.parallel.placement import Axis, place
from pab_compile.passes.parallel.shard import Shard


def test_a_dimension_that_many_tensors_have_is_looked_into_once() -> None:
    frames, rows, channels = Atom(4), Atom(6), Atom(8)
    asked: list[Atom] = []

    def holds(atom: Atom) -> bool:
        asked.append(atom)
        return atom is rows

    def dims(node: fx.Node) -> tuple[Dim, ...]:
        return (frames, rows), (channels,)

    axes: Any = SimpleNamespace(dims=dims)
    graph, axis = fx.Graph(), Axis("h", 6, holds)
    found = [place(axes, graph.placeholder(f"x_{block}"), axis) for block in range(3)]
    assert found == [Shard(0, 6, outer=4)] * 3
    first = len(asked)
    assert place(axes, graph.placeholder("y"), axis) == found[0]
    assert len(asked) == first == 3
