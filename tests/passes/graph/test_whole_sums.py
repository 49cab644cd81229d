"""What is added part by part, or over a stack, is one sum, with the same bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import captured, ops, values

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def in_place(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 2:].add_(y[:, 2:])
    x[:, :2].add_(y[:, :2])
    return x


def split(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    one, other = x.split(3, 1), y.split(3, 1)
    return torch.cat([one[0] + other[0], one[1] + other[1]], 1)


def joined(*parts: torch.Tensor, dim: int = 1) -> torch.Tensor:
    return torch.cat(parts, dim)


WHOLE: dict[str, Function] = {
    "parts": lambda x, y: joined(x[:, :2] + y[:, :2], x[:, 2:] + y[:, 2:]),
    "differences": lambda x, y: joined(x[:, :2] - y[:, :2], x[:, 2:] - y[:, 2:]),
    "split parts": split,
    "in place": in_place,
    "a stack": lambda x, y: torch.stack([x, y]).sum(0),
    "a stack along the last dimension": lambda x, y: torch.stack([x, y], -1).sum(-1),
}

LEFT: dict[str, Function] = {
    "a sum and a difference": lambda x, y: joined(x[:, :2] + y[:, :2], x[:, 2:] - y[:, 2:]),
    "crossed": lambda x, y: joined(x[:, :2] + y[:, :2], y[:, 2:] + x[:, 2:]),
    "another order": lambda x, y: joined(x[:, 3:] + y[:, 3:], x[:, :3] + y[:, :3]),
    "a part is missing": lambda x, y: joined(x[:, :2] + y[:, :2], x[:, 2:4] + y[:, 2:4]),
    "one for all": lambda x, y: joined(x[:, :2] + y[:, :1], x[:, 2:] + y[:, :1]),
    "a factor": lambda x, y: joined(x[:, :2] + y[:, :2], x[:, 2:].add(y[:, 2:], alpha=2)),
    "a stack of three": lambda x, y: torch.stack([x, y, y]).sum(0),
    "over another dimension": lambda x, y: torch.stack([x, y]).sum(1),
    "the dimension stays": lambda x, y: torch.stack([x, y]).sum(0, keepdim=True),
}


def model_of(function: Function) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda x, y: function(x.sin(), y.cos()) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_it_is_one_sum(name: str, dtype: torch.dtype) -> None:
    inputs = {n: values(2, 5, 4, seed=seed).to(dtype) for seed, n in enumerate("xy")}
    model = captured(model_of(WHOLE[name]), **inputs)
    last = "sub" if name == "differences" else "add"
    assert [op for op in ops(model.graph_module) if op != "clone"] == ["sin", "cos", last, "mul"]
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_left(name: str) -> None:
    model = captured(model_of(LEFT[name]), x=values(2, 5, 4), y=values(2, 5, 4, seed=1))
    assert {"cat", "stack"} & set(ops(model.graph_module))
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])
