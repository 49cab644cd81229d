"""Every rule, by what it is for: the parts that ranks compute are the parts of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from helpers.captured import Captured, captured, values
from helpers.lockstep import run_ranks
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.layout import Layout
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.placement import Axis
from pab_compile.passes.parallel.rules import judge
from pab_compile.passes.parallel.shard import Ranks, Shard
from pab_compile.passes.parallel.verdict import Verdict

SIZE = 6  # the axis that is sharded; no other size is 6
X = values(2, SIZE, 4, seed=1)
AXIS = Axis("t", SIZE, lambda atom: False)


def dealt_out(model: Captured, shard: Shard, num_ranks: int) -> Layout | str:
    """A layout that shards the first input, or why some op mixes the axis."""
    shards: dict[Any, Shard] = {}
    verdicts: dict[Any, Verdict] = {}
    first = ir.placeholders(model.graph)[0]
    shards[first] = shard
    for node in ir.calls(model.graph):
        if ir.is_getitem(node):
            found = verdicts[node.args[0]].outputs[node.args[1]]  # type: ignore[index]
        else:
            mine = {n: shards[n] for n in node.all_input_nodes if n in shards}
            if not mine:
                continue
            answer = judge(node, mine)
            if isinstance(answer, str):
                return answer
            verdicts[node] = answer
            found = answer.outputs[0] if ir.tensor(node) is not None else None
        if found is not None:
            shards[node] = found
    end = frozenset([ir.output_node(model.graph)])
    return Layout(AXIS, num_ranks, shards, verdicts, frozenset([first]), (), end)


def check(function: Callable[..., Any], shard: Shard, **inputs: torch.Tensor) -> None:
    """Four ranks, uneven parts: what they compute together is what one computes."""
    model = captured(function, **inputs)
    for num_ranks in (2, min(shard.size, 4)):
        layout = dealt_out(model, shard, num_ranks)
        assert isinstance(layout, Layout), layout
        modules = [
            localise(model.graph_module, layout, Ranks(num_ranks, rank)).graph_module
            for rank in range(num_ranks)
        ]
        for outputs in run_ranks(modules, model.args):
            for got, expected in zip(outputs, model.eager(), strict=True):
                torch.testing.assert_close(got, expected)


MIDDLE = Shard(1, SIZE)
RIGHT = {
    "elementwise": lambda x: F.gelu(x) * 2 + x.exp(),
    "a table along the axis": lambda x, table: x + table,
    "a row of the batch's own": lambda x, row: x * (1 + row),
    "linear": lambda x, w_in: F.linear(x, w_in),
    "batched product": lambda x, square: torch.matmul(x, square),
    "einsum": lambda x, w_in: torch.einsum("btc,dc->tbd", x, w_in),
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "softmax over channels": lambda x: x.softmax(-1),
    "mean over channels": lambda x: x.mean(-1),
    "mean over the batch": lambda x: x.mean(0, keepdim=True).squeeze(0),
    "fold into the batch": lambda x: x.reshape(12, 4).reshape(2, 6, 4),
    "fold with channels": lambda x: x.flatten(1).unflatten(1, (6, 2, 2)),
    "transposed": lambda x: x.transpose(1, 2).permute(2, 0, 1).movedim(0, 2),
    "new dimensions": lambda x: x[:, None].squeeze(1).unsqueeze(-1),
    "expand": lambda x: x[:, :, None].expand(2, 6, 3, 4),
    "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat interleaved": lambda x: x.repeat_interleave(3, 1),
    "fold what was repeated": lambda x: x.repeat_interleave(3, 1).reshape(36, 4) + 1,
    "concatenate channels": lambda x, table: torch.cat([x, table.expand(2, 6, 4)], -1),
    "prompt beside the axis": lambda x, text: torch.cat([text, x, text], 1) * 2,
    "prompt split off again": lambda x, text: torch.cat([text, x], 1).exp().split([5, 6], 1)[1] + 1,
    "prompt sliced off again": lambda x, text: torch.cat([x, text], 1)[:, 6:].sum(1),
    "a token of the prompt": lambda x, text: torch.cat([x, text], 1)[:, -1],
    "stack": lambda x: torch.stack([x, x * 2], 1),
    "chunk": lambda x: x.chunk(2, -1)[1] * x.chunk(2, -1)[0],
    "unbind": lambda x: x.unbind(0)[1],
    "select": lambda x: x[1],
    "slice": lambda x: x[..., 1:3],
    "index": lambda x, places: x[..., places],
    "pad channels": lambda x: F.pad(x, (1, 2)),
    "flip channels": lambda x: x.flip(-1),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(2, (2, 2))) * 2),
    "attention of the rows": lambda x: F.scaled_dot_product_attention(
        x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1)
    ),
    "queries along the axis": lambda x, text: F.scaled_dot_product_attention(x, text, text),
    "queries with a mask": lambda x, text, mask: F.scaled_dot_product_attention(
        x, text, text, attn_mask=mask
    ),
    "written behind the prompt": lambda x, text: (
        torch.slice_scatter(torch.cat([text, x], 1), x * 2, 1, 5, 11) + 1
    ),
    "written before what is behind it": lambda x, text: torch.slice_scatter(
        torch.cat([x, text], 1), torch.cat([x, text[:, :2]], 1) * 2, 1, 0, 8
    ),
    "written to rows that all ranks have": lambda x, text: (
        torch.slice_scatter(text.repeat(1, 3, 1), x * 2, 1, 5, 11) + 1
    ),
    "the prompt overwritten behind it": lambda x, text: (
        torch.slice_scatter(torch.cat([x, text], 1), text[:, 1:3], 1, 8, 10) + 1
    ),
    "a table written over it": lambda x, table: (
        torch.slice_scatter(x, table.expand(2, 6, 4), 1, 0, 6) * x
    ),
    "a token of the prompt overwritten": lambda x, text: (
        torch.select_scatter(torch.cat([x, text], 1), text[:, 0], 1, -2) + 1
    ),
    "new zeros": lambda x: x + x.new_zeros(2, 6, 4),
}
OTHERS = {
    "table": values(1, SIZE, 4, seed=2),
    "row": values(2, 1, 4, seed=3),
    "text": values(2, 5, 4, seed=4),
    "square": values(2, 4, 4, seed=5),
    "mask": values(1, SIZE, 5, seed=6),
    "places": torch.tensor([2, 0]),
}


def named(function: Callable[..., Any]) -> dict[str, torch.Tensor]:
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    return {name: OTHERS[name] for name in names if name in OTHERS} | {"x": X}


@pytest.mark.parametrize("name", RIGHT)
def test_what_ranks_compute_of_their_parts_is_their_part_of_the_whole(name: str) -> None:
    check(RIGHT[name], MIDDLE, **named(RIGHT[name]))


@pytest.mark.parametrize(
    ("function", "shard", "shape"),
    [
        (lambda x: x.reshape(2, 6, 8) + 1, Shard(0, SIZE, outer=2, inner=2), (24, 4)),
        (lambda x: F.conv1d(x, x.new_ones(3, 4, 2), stride=2), Shard(2, 3, inner=2), (2, 4, 6)),
        (lambda x: F.conv1d(x, x.new_ones(3, 4, 2), stride=2), Shard(0, SIZE), (6, 4, 6)),
    ],
)
def test_axes_with_others_in_their_dimension(
    function: Callable[..., Any], shard: Shard, shape: tuple[int, ...]
) -> None:
    check(function, Shard(**vars(shard)), x=values(*shape, seed=7))


WRONG = {
    "softmax over the axis": (lambda x: x.softmax(1), "mixes positions"),
    "mean over the axis": (lambda x: x.mean(1), "reduces over"),
    "mean over all": (lambda x: x.mean(), "reduces over"),
    "norm over the axis": (lambda x: F.layer_norm(x, (6, 4)), "normalises over"),
    "attention along it": (lambda x: F.scaled_dot_product_attention(x, x, x), "mixes the axis"),
    "product with itself": (lambda x: x @ x.transpose(1, 2), "pairs positions"),
    "sum over it": (lambda x: torch.einsum("btc,btd->bcd", x, x), "sums over"),
    "overlapping windows": (
        lambda x: F.conv1d(x.transpose(1, 2), x.new_ones(3, 4, 3), padding=1),
        "windows reach",
    ),
    "half of it": (lambda x: x[:, :3], "takes some positions"),
    "one of it": (lambda x: x[:, 2], "takes one position"),
    "split along it": (lambda x: x.split(2, 1)[0], "takes some positions"),
    "taken apart": (lambda x: x.unbind(1)[0], "takes the axis apart"),
    "factors": (lambda x: x.reshape(2, 2, 3, 4), "cuts the axis"),
    "shifted": (lambda x: torch.cat([x[:, :1], x], 1), "takes some positions"),
    "twice": (lambda x: torch.cat([x, x], 1), "one after another"),
    "half overwritten": (
        lambda x, table: torch.slice_scatter(x, table.expand(2, 6, 4)[:, :3], 1, 0, 3),
        "overwrites some positions",
    ),
    "overwritten by its neighbours": (
        lambda x, text: torch.slice_scatter(
            torch.cat([text, x], 1), torch.cat([x, text], 1)[:, :9], 1, 2, 11
        ),
        "other positions of the axis",
    ),
    "written over the prompt": (
        lambda x, text: torch.slice_scatter(torch.cat([text, text, x], 1), x, 1, 0, 6),
        "positions of the axis by others",
    ),
    "one overwritten": (
        lambda x, text: torch.select_scatter(x, text[:, 0], 1, 2),
        "overwrites some positions",
    ),
    "looked up": (lambda x, places: x[:, places], "looks up positions"),
    "padded": (lambda x: F.pad(x, (0, 0, 1, 0)), "pads the axis"),
    "cumulated": (lambda x: x.cumsum(1), "mixes positions"),
    "random": (lambda x: x * torch.rand_like(x), "random numbers"),
    "statistics of rows": (lambda x: F.batch_norm(x, None, None, training=True), "no rule says"),
    "no rule": (lambda x: torch.cdist(x, x), "no rule says"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_op_that_mixes_the_axis_is_refused_with_the_reason(name: str) -> None:
    function, reason = WRONG[name]
    found = dealt_out(captured(function, **named(function)), MIDDLE, 2)
    assert isinstance(found, str) and reason in found
