"""Unmapping: what is mapped over inputs becomes plain ops of the same values."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._C._functorch import maybe_current_level
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from helpers.captured import values
from helpers.mapped import dynamo_graph, num_maps, outer
from pab_compile.passes.graph import unmapping
from pab_compile.passes.graph.unmapping import unmap

Function = Callable[[torch.Tensor], torch.Tensor]
# Dynamo makes an instance of torch's own function.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


def sums(x: torch.Tensor) -> torch.Tensor:
    return x * torch.vmap(lambda row: row.sum())(x)[:, None]


def products(x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda row: row[:, None] @ row[None])(x)


def nested(x: torch.Tensor) -> torch.Tensor:
    return x * outer(x[:, 0], x[0])


def one_upon_another(x: torch.Tensor) -> torch.Tensor:
    return torch.vmap(lambda row: row * 2)(nested(x).exp())


def writing_to_its_own(x: torch.Tensor) -> torch.Tensor:
    def one(row: torch.Tensor) -> torch.Tensor:
        ones = row.new_zeros(4)
        ones[1] = row[0]
        return ones.cumsum(0) * row

    return torch.vmap(one)(x)


def mask_of_lengths(x: torch.Tensor) -> torch.Tensor:
    lengths = x.sum(1).abs().long()
    seen = create_mask(lambda b, h, q, k: k < lengths[b], 3, None, 4, 4, device="cpu")
    return x[:, None] * seen[:, 0]


def blocks_of_lengths(x: torch.Tensor) -> torch.Tensor:
    lengths = x.sum(1).abs().long()
    mask = create_block_mask(lambda b, h, q, k: k < lengths[b], 3, None, 4, 4, device="cpu")
    return x * mask.kv_num_blocks[:, 0]


EVERY = [
    sums,
    products,
    nested,
    one_upon_another,
    writing_to_its_own,
    mask_of_lengths,
    blocks_of_lengths,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", EVERY)
def test_what_is_mapped_becomes_plain_ops(function: Function, dtype: torch.dtype) -> None:
    inputs = values(3, 4).to(dtype)
    graph_module = dynamo_graph(function, inputs)
    assert num_maps(graph_module)
    assert unmap(graph_module, [inputs])
    assert num_maps(graph_module) == 0
    for seed in (1, 2):
        x = values(3, 4, seed=seed).to(dtype)
        assert torch.equal(graph_module(x)[0], function(x))
    assert unmap(graph_module, [inputs]) == 0


def writing_to_what_it_is_given(x: torch.Tensor) -> torch.Tensor:
    rows = x * 1
    return torch.vmap(lambda row: row.mul_(2))(rows) + rows


def mask_under_autocast(x: torch.Tensor) -> torch.Tensor:
    lengths = (x[:, 0] > 0).long()
    return x * torch.vmap(lambda length: torch.arange(4) < length)(lengths)


def test_what_writes_to_what_it_is_given_stays() -> None:
    graph_module = dynamo_graph(writing_to_what_it_is_given)
    before = str(graph_module.graph)
    assert unmap(graph_module, [values(3, 4)]) == 0
    assert str(graph_module.graph) == before


@pytest.mark.parametrize("error", [RuntimeError, TypeError])
def test_a_section_that_fails_stays_and_its_vmap_is_left(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = unmapping.run_node

    def failing(node: torch.fx.Node, known: dict[torch.fx.Node, object]) -> None:
        if node.target == "sum":
            raise error("as torch does for what it cannot map")
        run(node, known)

    monkeypatch.setattr(unmapping, "run_node", failing)
    graph_module = dynamo_graph(sums)
    before = str(graph_module.graph)
    assert unmap(graph_module, [values(3, 4)]) == 0
    assert str(graph_module.graph) == before
    assert maybe_current_level() is None


@pytest.mark.parametrize(("function", "number"), [(products, 0), (mask_under_autocast, 1)])
def test_under_autocast_only_what_has_no_floats_becomes_plain_ops(
    function: Function, number: int
) -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(x)

    graph_module = dynamo_graph(model)
    assert unmap(graph_module, [values(3, 4)]) == number
