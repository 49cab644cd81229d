"""Views back and forth between writes to parts are the tensor itself, and no other views are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import captured, ops, values
from pab_compile.passes.graph.round_trips import round_trips

Function = Callable[[torch.Tensor], torch.Tensor]
VIEWS = ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose")

SAME: dict[str, Function] = {
    "a view": lambda y: y.reshape(2, 2, 3, 4).reshape(2, 6, 4),
    "transposed twice": lambda y: y.transpose(1, 2).transpose(1, 2),
    "permuted around": lambda y: y.permute(2, 0, 1).permute(1, 2, 0),
    "a picture": lambda y: y.unflatten(1, (2, 3)).permute(0, 3, 1, 2).flatten(2).transpose(1, 2),
}
OTHER: dict[str, Function] = {
    "rows and columns exchanged": lambda y: (
        y.unflatten(1, (2, 3)).transpose(1, 2).flatten(1, 2).clone()
    ),
    "halves exchanged": lambda y: y.unflatten(1, (2, 3)).flip(1).flatten(1, 2),
    "another way back": lambda y: y.reshape(2, 4, 6).mT,
    "bits as whole numbers": lambda y: y.view(torch.int32).view(torch.int32) / 2**20,
    "bits as more numbers": lambda y: y.view(torch.uint8).view(torch.float32).flip(1),
    "the batch exchanged": lambda y: y.reshape(2, 2, 3, 4).transpose(0, 1).reshape(2, 6, 4),
}


def model_of(function: Function) -> Function:
    """Something is written to a part, and read through views."""

    def model(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        y[:, :1].copy_(y[:, :1].exp())
        return function(y) * 2 + y.cos()

    return model


@pytest.mark.parametrize("name", SAME)
def test_views_that_lead_back_are_left_out(name: str) -> None:
    model = captured(model_of(SAME[name]), x=values(2, 6, 4))
    assert not set(ops(model.graph_module)) & set(VIEWS)
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])
    assert round_trips(model.graph_module) == 0


@pytest.mark.parametrize("name", OTHER)
def test_other_elements_stay_other_ones(name: str) -> None:
    model = captured(model_of(OTHER[name]), x=values(2, 6, 4))
    assert set(ops(model.graph_module)) & {*VIEWS, "flip"}
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])
    assert round_trips(model.graph_module) == 0
