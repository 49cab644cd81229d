"""Measured: what sizes depend on becomes inputs, where computing it twice gives the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import fx

from helpers.captured import values
from helpers.golden import check_inline
from pab_compile.dynamo import trace_once
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.measured import Measured, measure

MASK = torch.tensor([True, False, True, True])


@pytest.fixture(autouse=True)
def _kept_in_the_graph() -> Iterator[None]:
    kept = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    with torch.compiler.config.patch(kept):
        yield


def measured(function: Callable[..., Any], *args: torch.Tensor) -> tuple[Measured, tuple[Any, ...]]:
    """The one graph of a call in two, and Dynamo's inputs; the parts together give the whole."""
    found: list[tuple[Measured, tuple[Any, ...]]] = []

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        found.append((measure(graph_module), tuple(inputs)))
        return graph_module.forward(*inputs)

    with torch.no_grad():
        trace_once(function, args, {}, look)
        (split, inputs) = found[0]
        if split.values is not None:
            whole = function(*args)
            assert torch.equal(split.rest(*split.extend(inputs))[0], whole)
            captured = capture(split.rest, split.extend(inputs))
            of = Inputs.of(split.rest, split.extend(inputs))
            assert torch.equal(captured(*of.tensors(split.extend(inputs)))[0], whole)
            assert not any(ir.is_call(node, "_assert_scalar") for node in captured.graph.nodes)
    assert len(found) == 1
    return split, inputs


def in_print(graph_module: fx.GraphModule | None) -> str:
    assert graph_module is not None
    return "\n".join(
        f"{node.name} = {ir.op_name(node)} {[str(arg) for arg in node.all_input_nodes]}"
        for node in graph_module.graph.nodes
        if node.op != "placeholder"  # torch 2.11 has them in another order
    )


def test_equal_values_are_computed_once_and_what_leads_to_them_is_left_out() -> None:
    def model(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first, second = torch.nonzero(~mask).flatten(), torch.nonzero(~mask).flatten()
        return x[first] + y[second]

    split, _ = measured(model, values(4), values(4), MASK)
    check_inline(
        in_print(split.values),
        """\
        invert = invert ['l_args_2_']
        nonzero = nonzero ['invert']
        output = output ['nonzero']
        """,
    )
    names = [node.name for node in split.rest.graph.nodes]
    assert [n for n in names if "nonzero" in n] == ["nonzero"] and "invert" not in names
    (added,) = [node for node in ir.placeholders(split.rest.graph) if ir.is_eager(node)]
    assert added.name == "nonzero" and len(split.examples) == 1


def test_a_number_is_measured_and_a_slice_up_to_it_is_not() -> None:
    def model(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        number = mask.sum().item()
        torch._check(number <= 4)
        return x[:number] * number

    split, inputs = measured(model, values(4), MASK)
    assert split.extend(inputs)[-1] == 3 and len(split.examples) == 1


def test_several_outputs_of_one_op_are_measured_each() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        found, counts = torch.unique(x, return_counts=True)
        return found * counts + torch.nonzero(found > 0).sum()

    split, inputs = measured(model, torch.tensor([1.0, 2.0, 2.0]))
    assert [tuple(each.shape) for each in split.extend(inputs)[1:]] == [(2,), (2,), (2, 1)]


def test_a_graph_without_such_values_is_left_alone() -> None:
    split, inputs = measured(lambda x: x.relu() + 1, values(3))
    assert split.values is None and split.extend(inputs) is inputs


def written(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.clone()
    mask.view(-1)[0] = False  # no op that nonzero is computed from knows of this write
    return x[torch.nonzero(mask).flatten()]


def random(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return x[torch.nonzero(torch.rand_like(x) > mask * 0.5).flatten()]


def dropped(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = torch.nn.functional.dropout(mask.float(), 0.5, True)
    return x[torch.nonzero(kept).flatten()]


def cast(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x[torch.nonzero(x[None] @ x[:, None] * mask > 1).flatten()]


@pytest.mark.parametrize("model", [written, random, dropped, cast])
def test_what_another_look_could_see_differently_is_refused(model: Callable[..., Any]) -> None:
    split, inputs = measured(model, values(4), MASK)
    assert split.values is None and split.extend(inputs) is inputs
    with pytest.raises(UnsupportedModelError, match="random, written to in place"):
        capture(split.rest, inputs)


def test_inputs_that_are_only_described_are_refused() -> None:
    split, inputs = measured(lambda x, mask: x[torch.nonzero(mask).flatten()], values(4), MASK)
    with pytest.raises(UnsupportedModelError, match="only described"):
        split.extend(tuple(each.to("meta") for each in inputs))
