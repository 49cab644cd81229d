"""Sizes that nobody asked for: right for the graph, and enough to learn from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.open_sizes import NotOpenError, SizeInputs
from pab_compile.passes.graph.other_sizes import at_sizes, other_sizes
from pab_compile.passes.graph.unify import Known, unify

from .test_unify import captured_at, numbers


def quarters(x: torch.Tensor) -> torch.Tensor:
    """Dynamo requires that the rows are a multiple of four, and that there are few elements."""
    if x.shape[1] % 4 or x.shape[0] * x.shape[1] >= 120:
        return x
    return x.reshape(x.shape[0], 4, x.shape[1] // 4 * 3) + 1


def test_they_fulfil_what_dynamo_requires() -> None:
    ((_, (graph, args)),) = captured_at(quarters, (2, 36, 3))
    given = SizeInputs.of(graph).values(args)
    found = other_sizes(graph, given)
    assert found is not None
    assert all(one != other for one, other in zip(found, given, strict=True))
    rows = found[given.index(36)]
    assert rows % 4 == 0
    assert rows * found[given.index(2)] < 120
    (made,) = [arg for arg in at_sizes(graph, args, found) or () if isinstance(arg, torch.Tensor)]
    assert made.shape[1] == rows
    assert made.stride() == (3 * rows, 3, 1)


def test_sizes_that_dynamo_requires_to_be_equal_are() -> None:
    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        product = x.shape[0] * x.shape[1]
        return x.flatten(0, 1) + y if product == y.shape[0] else x

    found: list[tuple[int, ...]] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*args: Any) -> Any:
            given = SizeInputs.of(graph).values(args)
            sizes = other_sizes(graph, given)
            assert sizes is not None
            found.append(sizes)
            shapes = [a.shape for a in at_sizes(graph, args, sizes) or () if hasattr(a, "shape")]
            rows, columns, channels = next(shape for shape in shapes if len(shape) == 3)
            assert (rows * columns, channels) in shapes
            assert (rows, columns) != (4, 6)
            return graph.forward(*args)

        return run

    torch.compile(add, backend=backend, dynamic=True)(torch.ones(4, 6, 3), torch.ones(24, 3))
    assert len(found) == 1


def test_with_them_one_capture_is_enough() -> None:
    ((last, (graph, args)),) = captured_at(quarters, (2, 36, 3))
    given = SizeInputs.of(graph).values(args)

    def capture_at(sizes: tuple[int, ...]) -> Known:
        return Known(capture(graph, at_sizes(graph, args, sizes) or ()), {})

    with pytest.raises(NotOpenError, match="no other sizes"):
        unify(last, [], graph, given)
    unify(last, [], graph, given, capture_at)
    assert any("//4" in rule or "/4" in rule for rule in numbers(last))
    opened = ir.open_sizes(last)
    assert opened.admits([8 if size == 36 else 5 for size in given])


def test_they_are_asked_for_only_if_they_show_something_new() -> None:
    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * x.shape[1], 3) + 1

    for shapes, is_asked in (([(4, 6, 3), (6, 4, 3)], True), ([(4, 6, 3), (5, 9, 3)], False)):
        *others, (last, (graph, args)) = captured_at(flat, *shapes)
        asked: list[tuple[int, ...]] = []
        known = [Known(other, {}) for other, _ in others]
        unify(last, known, graph, SizeInputs.of(graph).values(args), asked.append)
        assert bool(asked) == is_asked, shapes
