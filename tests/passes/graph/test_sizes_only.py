"""What takes only the size, dtype or device of a tensor does not read it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear, silu

from helpers.captured import (
    analysed,
    attend,
    captured,
    latents_of,
    ops,
    time_embedding,
    tokens_of,
    values,
)
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.sizes_only import read_sizes_only
from pab_compile.passes.sites.binding import Binding

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

SIZES_ONLY: dict[str, Function] = {
    "zeros_like": lambda x, gate: torch.zeros_like(x) + gate,
    "ones_like": lambda x, gate: torch.ones_like(x) * gate,
    "ones_like, other type": lambda x, gate: torch.ones_like(x, dtype=torch.float64) * gate,
    "full_like": lambda x, gate: torch.full_like(x, 0.5) * gate,
    "full_like, true": lambda x, gate: torch.full_like(x, True, dtype=torch.bool) & (gate > 0),
    "empty_like, filled": lambda x, gate: torch.empty_like(x).copy_(gate.expand_as(x)),
    "new_zeros": lambda x, gate: x.new_zeros(2, 3) + gate,
    "new_ones": lambda x, gate: x.new_ones(2, 3) * gate,
    "new_full": lambda x, gate: x.new_full((2, 3), 2.0) * gate,
    "new_empty, filled": lambda x, gate: x.new_empty(2, 3).fill_(1.0) * gate,
    "x.T": lambda x, gate: torch.zeros_like(x.T) + gate.T,
    "expand_as": lambda x, gate: gate.expand_as(x),
    "view_as": lambda x, gate: gate.expand(2, 3).contiguous().view_as(x),
    "reshape_as": lambda x, gate: gate.expand(2, 3).reshape_as(x),
    "type_as": lambda x, gate: gate.type_as(x.double()),
    "to, like another": lambda x, gate: gate.to(x.double()),
    "broadcast_tensors": lambda x, gate: torch.broadcast_tensors(x, gate)[1],
    "x.shape": lambda x, gate: gate.expand(x.shape[0], x.shape[1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SIZES_ONLY)
def test_the_tensor_is_no_longer_read(name: str, dtype: torch.dtype) -> None:
    x, gate = values(2, 3).to(dtype), values(2, 1, seed=1).to(dtype)
    model = captured(SIZES_ONLY[name], x=x, gate=gate)
    (expected,) = model.eager()
    (found,) = model.graph_module(*model.args)
    assert torch.equal(found, expected)
    assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
    assert not model.node("x").users


READS: dict[str, Function] = {
    "its values": lambda x, gate: x * 0 + gate,
    "a product with zeros": lambda x, gate: torch.zeros_like(x) * x + gate,
    "dropout": lambda x, gate: torch.nn.functional.dropout(x, 0.5) + gate,
    "a copy": lambda x, gate: torch.clone(x) + gate,
    "the other tensor of broadcast_tensors": lambda x, gate: torch.broadcast_tensors(x, gate)[0],
}


@pytest.mark.parametrize("name", READS)
def test_what_reads_values_stays(name: str) -> None:
    model = captured(READS[name], x=values(2, 3), gate=values(2, 1, seed=1))
    assert model.node("x").users


def test_random_numbers_stay_laid_out_like_their_tensor() -> None:
    model = captured(lambda x: torch.rand_like(x) + 1, x=values(4, 40))
    assert model.node("x").users


def gate_laid_out_like_the_latents(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_qkv: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """``x + gate * proj(attention(x))``, where ``zeros_like(x)`` is written with the gate."""
    x = tokens_of(latents, w_in)
    gate = silu(time_embedding(timestep, w_time))
    gate = torch.slice_scatter(torch.zeros_like(x), gate.expand_as(x), 1)
    y = linear(x, w_qkv)
    return latents_of(x + gate * linear(attend(y, y, y), w_out))


def test_a_gate_that_is_laid_out_like_the_latents_depends_on_the_step_only() -> None:
    model = captured(gate_laid_out_like_the_latents)
    program = analysed(model, cut="attention")
    (site,) = program.sites
    assert [ir.op_name(node) for node in site.cut] == ["linear"]
    (gated,) = (user for node in site.cut for user in node.users)
    gate = next(node for node in gated.all_input_nodes if node not in site.cut)
    assert ir.binding(gate) == Binding.STEP


def test_the_graph_before_and_after() -> None:
    model = captured(
        lambda x, gate: torch.zeros_like(x) + gate.expand_as(x), x=values(2, 3), gate=values(2, 1)
    )
    check_inline(
        format_graph(model.graph_module),
        """\
%x = input x : f32[2, 3]
%gate = input gate : f32[2, 1]
%full_default = aten.full([2, 3], 0, dtype=f32) : f32[2, 3]
%expand = aten.expand(%gate, [2, 3]) : f32[2, 3]
%add = aten.add(%full_default, %expand) : f32[2, 3]
return %add
""",
    )


def test_a_second_time_changes_nothing() -> None:
    model = captured(SIZES_ONLY["zeros_like"], x=values(2, 3), gate=values(2, 1, seed=1))
    before = ops(model.graph_module)
    assert read_sizes_only(model.graph_module.graph) == 0
    assert ops(model.graph_module) == before
