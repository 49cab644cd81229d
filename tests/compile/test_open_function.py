"""Pieces for all sizes, and the sizes and strides that they are not right for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx

from helpers.open_pieces import doubled
from pab_compile.compile.lazy_function import LazyFunction
from pab_compile.compile.open_function import OpenFunction
from pab_compile.passes.graph.opening import OpenPiece


class Compiler:
    """Counts what is compiled, and for which sizes."""

    def __init__(self, piece: OpenPiece, condition: Any = None) -> None:
        self.piece, self.condition = piece, condition
        self.num_open, self.fixed = 0, list[str]()
        self.function = OpenFunction(piece, LazyFunction(self._open), self._fixed)

    def _open(self, args: Sequence[Any]) -> Any:
        self.num_open += 1
        if self.condition is not None:  # as an inner compiler requires what suits it
            assert self.condition(self.piece.examples[0])
        return self.piece.graph_module.forward

    def _fixed(self, graph_module: fx.GraphModule, key: str) -> Any:
        self.fixed.append(key.rpartition(" (")[2])
        return graph_module.forward


def test_one_function_serves_all_sizes() -> None:
    compiler = Compiler(doubled())
    for rows in (4, 5, 9, 4):
        x = torch.randn(rows, 3)
        (y,) = compiler.function.at((rows,))(x)
        assert torch.equal(y, 2 * x)
    assert compiler.num_open == 1
    assert compiler.fixed == []


def test_sizes_that_the_inner_compiler_did_not_expect_have_their_own() -> None:
    compiler = Compiler(doubled(), lambda rows: rows < 8)
    small, large = compiler.function.at((4,)), compiler.function.at((9,))
    for _ in range(2):
        for sized, rows in ((small, 4), (large, 9)):
            x = torch.randn(rows, 3)
            (y,) = sized(x)
            assert torch.equal(y, 2 * x)
    assert compiler.fixed == ["9,)"]


@pytest.mark.parametrize("rows", [5, 7])
def test_other_strides_have_their_own(rows: int) -> None:
    compiler = Compiler(doubled())
    x = torch.randn(3, rows).t()
    (y,) = compiler.function.at((rows,))(x)
    assert torch.equal(y, 2 * x)
    assert compiler.fixed == [f"{rows},)"]
    compiler.function.at((rows,))(torch.randn(rows, 3))
    assert len(compiler.fixed) == 1
