"""Structure keys: graphs with one key may share one compiled function, and no others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import captured, values
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import call_text, calls_key, structure_key

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def key(function: Function, x: torch.Tensor, y: torch.Tensor) -> str:
    return structure_key(captured(function, x=x, y=y).graph_module)


def usual(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.sin() * y + 2


def named_otherwise(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first = torch.sin(x)
    second = first * y
    return second + 2


OTHER_FUNCTIONS: dict[str, Function] = {
    "another op": lambda x, y: x.cos() * y + 2,
    "another number": lambda x, y: x.sin() * y + 3,
    "another operand": lambda x, y: x.sin() * x + 2,
    "the other way round": lambda x, y: y * x.sin() + 2,
}
OTHER_INPUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "another size": lambda x: torch.cat([x, x]),
    "other strides": lambda x: x.T.contiguous().T,
    "another type": lambda x: x.double(),
}


def test_names_do_not_matter_and_values_do_not_either() -> None:
    one = key(usual, values(3, 3), values(3, 3, seed=1))
    assert key(named_otherwise, values(3, 3, seed=2), values(3, 3, seed=3)) == one


@pytest.mark.parametrize("what", OTHER_FUNCTIONS)
def test_another_function_has_another_key(what: str) -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    assert key(OTHER_FUNCTIONS[what], x, y) != key(usual, x, y)


@pytest.mark.parametrize("what", OTHER_INPUTS)
def test_another_layout_has_another_key(what: str) -> None:
    x, y = values(3, 3), values(3, 3, seed=1)
    changed = OTHER_INPUTS[what]
    assert key(usual, changed(x), changed(y)) != key(usual, x, y)


def test_runs_of_calls_are_alike_if_wiring_and_results_are() -> None:
    model = captured(
        lambda x, y: (x.sin() * y, x.cos(), (y.sin() * x).cos()), x=values(3, 3), y=values(3, 3)
    )
    calls = list(ir.calls(model.graph))

    def run(*names: str) -> tuple[object, ...]:
        chosen = [node for node in calls if node.name in names]
        return calls_key(chosen, [call_text(node) for node in chosen])

    assert run("sin") == run("sin_1")
    assert run("sin", "mul") != run("sin_1", "mul_1", "cos_1")
    assert run("sin", "mul") == run("sin_1", "mul_1")
    assert run("sin", "cos") != run("sin_1", "cos_1")
