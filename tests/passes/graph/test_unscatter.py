"""A tensor whose parts are all written anew is the concatenation of what is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.captured import captured, ops, values

Function = Callable[[torch.Tensor], torch.Tensor]


def written(*parts: tuple[int, int]) -> Function:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        for number, (start, stop) in enumerate(parts):
            y[:, start:stop].copy_(y[:, start:stop].exp() * (number + 1))
        return y * 2

    return function


def last(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    y[..., :1].add_(1)
    y[..., 1:].copy_(y[..., 1:].exp())
    return y * 2


def twice(x: torch.Tensor) -> torch.Tensor:
    """As Dynamo traces ``y[:, :2] += 1``: added in place, and then written to where it is."""
    y = x.sin()
    for start, stop in ((0, 2), (2, 5)):
        part = y[:, start:stop].mul_(2)
        y[:, start:stop].copy_(part)
    return y * 2


def through_views(x: torch.Tensor) -> torch.Tensor:
    """The stream is a grid, and its parts are written through a view of it as a row."""
    grid = x.sin().unflatten(0, (1, -1)).squeeze(0)
    row = grid.unflatten(1, (5, 1)).flatten(1, 2)
    for start, stop in ((1, 5), (0, 1)):
        part = row[:, start:stop].mul_(2)
        row[:, start:stop].copy_(part)
    return row * 2


def through_a_picture(x: torch.Tensor) -> torch.Tensor:
    """The stream has its channels first, and its parts are written through a view as tokens."""
    picture = x.sin().unflatten(1, (5, 1)).movedim(-1, 1)
    tokens = picture.flatten(2).transpose(1, 2)
    for start, stop in ((1, 5), (0, 1)):
        part = tokens[:, start:stop].mul_(2)
        tokens[:, start:stop].copy_(part)
    return picture.permute(0, 2, 3, 1).flatten(1, 2) * 2


REPLACED: dict[str, Function] = {
    "in order": written((0, 2), (2, 5)),
    "the end first": written((2, 5), (0, 2)),
    "three": written((1, 3), (0, 1), (3, 5)),
    "the last dimension": last,
    "each part twice": twice,
    "through views": through_views,
    "through a picture": through_a_picture,
}


def steps(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    y[:, ::2].copy_(y[:, ::2].exp())
    y[:, 1::2].copy_(y[:, 1::2].cos())
    return y * 2


def other_dimension(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    y[:, :2].copy_(y[:, :2].exp())
    y[..., 2:].copy_(y[..., 2:].cos())
    return y * 2


def read_between(x: torch.Tensor) -> torch.Tensor:
    y = x.sin()
    y[:, :2].copy_(y[:, :2].exp())
    z = y.sum(1, keepdim=True)
    y[:, 2:].copy_(y[:, 2:] + z)
    return y * 2


def transposed(x: torch.Tensor) -> torch.Tensor:
    y = x.mT.sin()
    y[:, :2].copy_(y[:, :2].exp())
    y[:, 2:].copy_(y[:, 2:].cos())
    return y * 2


def gap_and_overlap(x: torch.Tensor) -> torch.Tensor:
    """The parts are as long as the tensor together, and none of them is read."""
    y, z = x.sin(), x.cos()
    for start, stop in ((0, 2), (1, 3), (4, 5)):
        y[:, start:stop].copy_(z[:, start:stop])
    return y * 2


def through_another_order(x: torch.Tensor) -> torch.Tensor:
    """One part is written through a view whose rows are in another order."""
    y = x[:, :4].sin()
    y[:, :2].copy_(y[:, :2].exp())
    grid = y.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2)
    return torch.cat([y, grid], 1) * 2


LEFT: dict[str, Function] = {
    "a part stays": written((0, 2), (3, 5)),
    "a gap and an overlap": gap_and_overlap,
    "an overlap": written((0, 3), (2, 5)),
    "one part is written twice": written((0, 2), (2, 5), (1, 3)),
    "every second": steps,
    "another dimension": other_dimension,
    "read as a whole between two writes": read_between,
    "rows in another order": through_another_order,
    "another layout": transposed,
}


@pytest.mark.parametrize("name", REPLACED)
def test_writes_of_all_parts_are_a_concatenation(name: str) -> None:
    model = captured(REPLACED[name], x=values(2, 5, 4))
    assert "slice_scatter" not in ops(model.graph_module)
    assert ops(model.graph_module).count("cat") == 1
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])


@pytest.mark.parametrize("name", LEFT)
def test_anything_else_is_left(name: str) -> None:
    model = captured(LEFT[name], x=values(2, 5, 4))
    assert "slice_scatter" in ops(model.graph_module)
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])


def test_a_part_that_was_written_is_not_read_from_below() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x.sin()
        y[:, :3].copy_(y[:, :3].exp())
        return y[:, 2:] * 2

    model = captured(function, x=values(2, 5, 4))
    assert torch.equal(model.graph_module(*model.args)[0], model.eager()[0])
