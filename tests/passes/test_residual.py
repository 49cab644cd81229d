"""Residual branches without a token mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, linear

import captured as models
from captured import Captured, analysed, attend, captured, latents_of, time_embedding, tokens_of
from pab_compile.passes.residual import Branch, cut_of, find_branches


def branches_of(model: Captured) -> list[Branch]:
    program = analysed(model)
    mixers = frozenset(node for mixer in program.mixers for node in mixer.nodes)
    return list(find_branches(model.graph, mixers))


def in_block(body: Callable[..., torch.Tensor]) -> Captured:
    """A model of an attention and then ``body(x, emb, w_up, w_down)``."""

    def model(latents, timestep, w_in, w_time, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        emb = time_embedding(timestep, w_time)
        return latents_of(body(x + attend(x, x, x), emb, w_up, w_down))

    return captured(model)


def ends(body: Callable[..., torch.Tensor], cut: str = "gated") -> list[str]:
    """Targets of the nodes to cache of every branch."""
    return [str(cut_of(b, cut).target) for b in branches_of(in_block(body))]


def test_a_gated_mlp_is_one_branch_with_two_cuts() -> None:
    (branch,) = branches_of(captured(models.mlp_block))
    assert branch.end.name == "mul_1"
    assert {node.name for node in branch.nodes} == {"mul_1", "linear_4", "gelu", "linear_3", "mul"}
    assert branch.last_contraction.name == "linear_4"
    assert cut_of(branch, "attention").name == "linear_4"
    assert cut_of(branch, "gated").name == "mul_1"


def test_a_branch_with_attention_is_none_of_these() -> None:
    assert branches_of(captured(models.gated_attention)) == []
    assert branches_of(captured(models.parallel_block)) == []


def test_the_operands_of_the_add_may_stand_in_either_order() -> None:
    assert ends(lambda x, emb, up, down: x + linear(gelu(x), down)) == ["aten.linear.default"]
    assert ends(lambda x, emb, up, down: linear(gelu(x), down) + x) == ["aten.linear.default"]


def test_parallel_branches_are_told_apart() -> None:
    found = branches_of(
        in_block(lambda x, emb, up, down: x + linear(gelu(x), up) + linear(x.sin(), down))
    )
    assert [branch.end.name for branch in found] == ["linear_2", "linear_3"]
    assert not set(found[0].nodes) & set(found[1].nodes)


def test_successive_branches_are_found_in_order() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        x = x + linear(gelu(x), up)
        return x + linear(gelu(x), down)

    found = branches_of(in_block(body))
    assert [branch.end.name for branch in found] == ["linear_2", "linear_3"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, emb, up, down: x + x * emb, id="no contraction"),
        pytest.param(lambda x, emb, up, down: linear(gelu(x), up), id="no residual"),
        pytest.param(lambda x, emb, up, down: x + linear(emb, up), id="not of the latents"),
        pytest.param(lambda x, emb, up, down: linear(x, up) + linear(x, down), id="no trunk"),
    ],
)
def test_what_is_no_residual_branch_is_not_taken_for_one(
    body: Callable[..., torch.Tensor],
) -> None:
    assert ends(body) == []


def test_a_shift_by_the_timestep_counts_as_gate() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        return x + (linear(gelu(x), down) * emb + emb)

    (branch,) = branches_of(in_block(body))
    assert cut_of(branch, "attention").name == branch.last_contraction.name


def test_a_bias_that_does_not_change_stays_in_the_cut() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        return x + (linear(gelu(x), down) + up[0])

    (branch,) = branches_of(in_block(body))
    assert cut_of(branch, "attention") is cut_of(branch, "gated") is branch.end
