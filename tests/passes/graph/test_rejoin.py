"""A tensor that is split into parts and concatenated again is the tensor itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import captured, ops, values
from pab_compile.passes.graph.rejoin import rejoin

Function = Callable[[torch.Tensor], torch.Tensor]

REJOINED: dict[str, Function] = {
    "slices": lambda y: torch.cat([y[:, :2], y[:, 2:]], 1),
    "three slices": lambda y: torch.cat([y[:, :1], y[:, 1:3], y[:, 3:]], 1),
    "a negative position": lambda y: torch.cat([y[:, :-2], y[:, -2:]], 1),
    "the last dimension": lambda y: torch.cat([y[..., :1], y[..., 1:]], -1),
    "narrow": lambda y: torch.cat([y.narrow(1, 0, 2), y.narrow(1, 2, 3)], 1),
    "split": lambda y: torch.cat(y.split([2, 3], 1), 1),
    "split into equal parts": lambda y: torch.cat(y.split(2, 1), 1),
    "chunk": lambda y: torch.cat(y.chunk(2, 1), 1),
    "a part of a part": lambda y: torch.cat([y[:, :3][:, :1], y[:, :3][:, 1:], y[:, 3:]], 1),
    "copies of parts": lambda y: torch.cat([y[:, :2].contiguous(), y[:, 2:].clone()], 1),
}

LEFT: dict[str, Function] = {
    "another order": lambda y: torch.cat([y[:, 2:], y[:, :2]], 1),
    "a gap": lambda y: torch.cat([y[:, :2], y[:, 3:]], 1),
    "an overlap": lambda y: torch.cat([y[:, :3], y[:, 2:]], 1),
    "the end is missing": lambda y: torch.cat([y[:, :2], y[:, 2:4]], 1),
    "every second": lambda y: torch.cat([y[:, ::2], y[:, 3:]], 1),
    "two tensors": lambda y: torch.cat([y[:, :2], (y + 1)[:, 2:]], 1),
    "another dimension": lambda y: torch.cat([y[:, :2], y[:, :2]], 2),
    "one part is changed": lambda y: torch.cat([y[:, :2], 2 * y[:, 2:]], 1),
    "another layout": lambda y: torch.cat([y.mT[:, :2], y.mT[:, 2:]], 1),
}


def model_of(function: Function) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: function(x.sin()) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", REJOINED)
def test_the_parts_are_the_whole(name: str, dtype: torch.dtype) -> None:
    model = captured(model_of(REJOINED[name]), x=values(2, 5, 4).to(dtype))
    assert ops(model.graph_module) == ["sin", "mul"]
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])
    assert rejoin(model.graph_module) == 0


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_left(name: str) -> None:
    model = captured(model_of(LEFT[name]), x=values(2, 5, 4))
    assert "cat" in ops(model.graph_module)
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])


def test_what_is_returned_is_memory_of_its_own() -> None:
    def parts(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.sin()
        joined = torch.cat([x[:, :2], x[:, 2:]], 1)
        viewed = torch.cat([y[:, :2], y[:, 2:]], 1).view(-1)
        return joined, viewed, torch.cat([x[:, :3], x[:, 3:]], 1).contiguous()

    model = captured(parts, x=values(2, 5, 4))
    assert ops(model.graph_module).count("cat") == 3
    addresses = {tensor.data_ptr() for tensor in (*model.args, *model.graph_module(*model.args))}
    assert len(addresses) == 4
