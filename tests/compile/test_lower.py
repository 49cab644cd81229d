"""Lowering: what the inner compiler is given, and what it is spared."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from helpers.graphs import traced
from helpers.open_pieces import doubled
from pab_compile.compile.lower import PieceCompiler
from pab_compile.compile.progress import CompileProgress
from pab_compile.passes.graph.structure import structure_key


def piece() -> fx.GraphModule:
    return traced(lambda latents, w_scale: (latents * w_scale).relu(), w_scale=(12,))


def compiler() -> PieceCompiler:
    return PieceCompiler("inductor", None, CompileProgress())


def test_pieces_are_compiled_with_static_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    create = ShapeEnv.create_symbol

    def watched(self: ShapeEnv, *args: object, **kwargs: object) -> object:
        made.append(str(args[0]))
        return create(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ShapeEnv, "create_symbol", watched)
    graph_module = piece()
    args = (torch.randn(2, 4, 3, 8, 12), torch.randn(12))
    (result,) = compiler().compile(graph_module, structure_key(graph_module))(*args)
    torch.testing.assert_close(result, (args[0] * args[1]).relu())
    assert made == []


def test_equal_pieces_are_compiled_once() -> None:
    ours = compiler()
    one, other = piece(), piece()
    assert ours.compile(one, structure_key(one)) is ours.compile(other, structure_key(other))
    assert ours.num_pieces == 1


def test_an_open_piece_is_compiled_once_for_all_sizes() -> None:
    ours = compiler()
    function = ours.compile_open(doubled())
    assert ours.compile_open(doubled()) is function
    for rows in (4, 9, 6):
        x = torch.randn(rows, 3)
        (result,) = function.at((rows,))(x)
        assert torch.equal(result, 2 * x)
    assert ours.num_pieces == 1


def test_warming_up_ends_before_the_first_piece_is_compiled() -> None:
    ours = compiler()
    args = (torch.randn(2, 4, 3, 8, 12), torch.randn(12))
    ours.warm_up(args)
    warming = ours._warming
    assert warming is not None
    graph_module = piece()
    ours.compile(graph_module, structure_key(graph_module))(*args)
    assert not warming.is_alive()


def test_nothing_is_warmed_up_for_other_inner_compilers() -> None:
    eager = PieceCompiler("eager", None, CompileProgress())
    eager.warm_up((torch.randn(2),))
    assert eager._warming is None
