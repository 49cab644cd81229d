"""What two captures at different sizes say of all sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.open_sizes import (
    NotOpenError,
    OpenSizes,
    SizeInputs,
    compute_value,
)
from pab_compile.passes.graph.opening import Opener
from pab_compile.passes.graph.size import Size
from pab_compile.passes.graph.unify import Known, skeleton, unify

Function = Callable[[torch.Tensor], torch.Tensor]


def captured_at(function: Function, *shapes: Sequence[int]) -> list[tuple[fx.GraphModule, Any]]:
    """Captures at some shapes, each with Dynamo's graph and inputs. Sizes are open at once."""
    found: list[tuple[fx.GraphModule, Any]] = []

    def backend(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found.append((capture(graph, args), (graph, args)))
            return graph.forward(*args)

        return run

    compiled = torch.compile(function, backend=backend, dynamic=True)
    for shape in shapes:
        compiled(torch.ones(*shape))
    return found


def unified(function: Function, *shapes: Sequence[int]) -> tuple[fx.GraphModule, OpenSizes]:
    """The last of some captures, with what the others say of it."""
    *others, (last, (graph, args)) = captured_at(function, *shapes)
    given = SizeInputs.of(graph).values(args)
    unify(last, [Known(other, {}) for other, _ in others], graph, given)
    return last, ir.open_sizes(last)


def numbers(graph_module: fx.GraphModule) -> list[str]:
    """The rules of all numbers in the arguments of calls."""
    leaves = [
        leaf
        for n in ir.calls(graph_module.graph)
        for leaf in torch.utils._pytree.tree_leaves(n.args)
    ]
    return [str(leaf.expression) for leaf in leaves if isinstance(leaf, Size)]


def test_a_number_that_differs_follows_from_the_sizes() -> None:
    graph, opened = unified(lambda x: x.reshape(2, x.shape[1] * 4) + 1, (2, 5, 4), (2, 7, 4))
    (symbol,) = opened.symbols
    assert numbers(graph) == [f"4*{symbol}"]
    assert opened.admits((11,))
    assert not opened.admits((1,)), "torch makes no symbol of 1"


def test_expressions_that_two_sizes_do_not_tell_apart_must_be_equal() -> None:
    def even(x: torch.Tensor) -> torch.Tensor:
        half = x[:, : x.shape[1] // 2]
        return torch.cat([half, half], 1).reshape(x.shape[1] // 2 * 2 * 3)

    _, opened = unified(even, (1, 6, 3), (1, 8, 3))
    assert opened.admits((12,))
    assert not opened.admits((9,)), "half of it, twice, is not all of it"


def test_what_two_sizes_do_not_tell_apart_a_third_may() -> None:
    def flat(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0] * x.shape[1], 3) + 1

    upright, wide, square = (4, 6, 3), (6, 4, 3), (5, 5, 3)
    _, of_two = unified(flat, upright, wide)
    assert not of_two.admits((7, 9)), "both have 24 rows"
    _, of_three = unified(flat, upright, square, wide)
    assert of_three.admits((7, 9))


def test_a_size_that_the_model_treats_apart_does_not_count() -> None:
    def half(x: torch.Tensor) -> torch.Tensor:
        return x[:, : 2 if x.shape[1] == 6 else x.shape[1] // 2] + 1

    for shapes in ((8, 6, 12), (6, 8, 12)):
        graph, opened = unified(half, *((1, rows, 3) for rows in shapes))
        assert numbers(graph) == [f"({opened.symbols[0]}//2)"]


def test_a_number_of_no_known_rule_is_refused() -> None:
    with pytest.raises(NotOpenError, match="the rule is not known"):
        unified(lambda x: x.tensor_split(3, 1)[2] + 1, (1, 5, 3), (1, 10, 3))


def test_a_wrong_guess_holds_only_where_it_is_right() -> None:
    graph, opened = unified(lambda x: x[:, : x.shape[1] // 2] + 1, (1, 6, 3), (1, 8, 3))
    assert opened.admits((12, 3))
    (end,) = [node for node in ir.calls(graph.graph) if ir.is_call(node, "slice")]
    wrong = opened.size(opened.symbols[0] - 4)  # it is 4, like half of 8
    end.args = (*end.args[:3], wrong)
    opener = Opener(opened)
    opener.piece(graph, list(opener.inputs_of(graph).values()))
    assert opened.admits((8, 3))
    assert not opened.admits((12, 3))


def test_a_number_that_is_no_integer_is_refused() -> None:
    with pytest.raises(NotOpenError, match="no integer"):
        unified(lambda x: x * (1.5 / x.shape[1]), (1, 5, 3), (1, 9, 3))


def test_a_fraction_is_refused_also_where_two_sizes_agree() -> None:
    with pytest.raises(NotOpenError, match="no integer"):
        unified(lambda x: x * torch.sym_max(1.0, x.shape[1] / 64), (1, 5, 3), (1, 9, 3))


def test_elements_of_a_tensor_are_refused_also_where_two_sizes_agree() -> None:
    for made in (
        lambda x: x + torch.tensor(x.shape[1] // 16),
        lambda x: x + torch.tensor([x.shape[1] // 16, 2, 3]),
    ):
        with pytest.raises(NotOpenError, match="elements of a tensor"):
            unified(made, (1, 33, 3), (1, 40, 3))


def test_other_constants_are_refused() -> None:
    (first, _), (second, (graph, args)) = captured_at(
        lambda x: x + torch.tensor([1.0, 2.0, 3.0]), (1, 5, 3), (1, 9, 3)
    )
    given = SizeInputs.of(graph).values(args)
    (held,) = [node for node in second.graph.nodes if node.op == "get_attr"]
    setattr(first, str(held.target), torch.tensor([1.0, 2.0, 4.0]))
    with pytest.raises(NotOpenError, match="constant"):
        unify(second, [Known(first, {})], graph, given)


def test_without_other_sizes_nothing_is_known() -> None:
    with pytest.raises(NotOpenError, match="no other sizes"):
        unified(lambda x: x.flatten(), (1, 5, 3))
    with pytest.raises(NotOpenError, match="no other sizes"):
        unified(lambda x: x.flatten(), (1, 5, 3), (1, 5, 3))


def test_a_size_that_never_changed_stays_as_it_is() -> None:
    graph, opened = unified(lambda x: x.flatten() * x.shape[2], (2, 5, 4), (2, 5, 6))
    assert [symbol for symbol in map(str, opened.symbols) if symbol in str(numbers(graph))]
    sizes = list(opened.given)
    (changed,) = (n for n, size in enumerate(sizes) if size == 6)
    sizes[changed] = 9
    assert opened.admits(sizes)
    for other in {*range(len(sizes))} - {changed}:
        assert not opened.admits([*sizes[:other], 8, *sizes[other + 1 :]])


def test_skeletons_tell_graphs_and_weights_apart() -> None:
    weights = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 6)]
    (one, _), (same, _) = captured_at(lambda x: x + x.shape[1], (2, 5, 4), (2, 7, 4))
    ((other, _),) = captured_at(lambda x: x - x.shape[1], (2, 5, 4))
    assert skeleton(one) == skeleton(same) != skeleton(other)
    made = [
        captured_at(torch.nn.Sequential(w).requires_grad_(False), (2, 5, 4))[0][0] for w in weights
    ]
    assert skeleton(made[0]) != skeleton(made[1])


def test_what_a_pass_adds_keeps_its_sizes_open() -> None:
    graph, opened = unified(lambda x: x.reshape(2, x.shape[1] * 4) + 1, (2, 5, 4), (2, 7, 4))
    (view,) = [node for node in ir.calls(graph.graph) if ir.is_call(node, "view", "reshape")]
    with graph.graph.inserting_after(view):
        added = graph.graph.node_copy(view, lambda node: node)
    compute_value(added)
    assert ir.shape(added) == ir.shape(view)
    assert isinstance(ir.layouts(added)[0].sizes[1], Size)
    assert opened.admits((11,))


def test_an_opened_graph_computes_every_size() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(x.shape[0] * x.shape[1], 4)
        return (rows + torch.arange(rows.shape[0])[:, None]).reshape(x.shape) - x.shape[1] // 2

    graph, opened = unified(function, (2, 5, 4), (3, 8, 4))
    opener = Opener(opened)
    inputs = list(opener.inputs_of(graph).values())
    piece = opener.piece(graph, inputs)
    assert piece is not None
    for shape in ((4, 6, 4), (9, 3, 4)):
        assert opened.admits(shape[:2])
        x = torch.randn(shape)
        for computed in (
            piece.graph_module(*shape[:2], x),
            piece.closed_at(shape[:2])(x),
        ):
            assert torch.equal(computed[0], function(x))
