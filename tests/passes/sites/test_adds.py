"""Which value is added to which stream."""

from __future__ import annotations

import torch
from torch import fx

from helpers.graphs import returned, traced
from pab_compile.passes.graph import ir, walk
from pab_compile.passes.sites import adds
from pab_compile.passes.sites.binding import bind


def block(
    latents: torch.Tensor, w_in: torch.Tensor, w_bias: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    first = latents + latents @ w_in + w_bias
    second = torch.add(first, first.sin(), alpha=2)
    return (second - second.cos(),)


def calls(name: str) -> list[fx.Node]:
    graph_module = traced(block, w_in=(12, 12), w_bias=(12,))
    bind(graph_module.graph, frozenset(ir.placeholders(graph_module.graph)[:1]), frozenset())
    return [node for node in ir.calls(graph_module.graph) if ir.is_call(node, name)]


def test_an_add_of_two_latent_values_has_two_readings() -> None:
    both, constant, scaled = calls("add")
    x, product = both.all_input_nodes
    assert adds.readings(both) == (adds.Addition(x, product), adds.Addition(product, x))
    assert adds.readings(constant) == ()
    assert len(adds.readings(scaled)) == 2


def test_a_plain_add_has_no_factor() -> None:
    assert [adds.is_plain_add(node) for node in calls("add")] == [True, True, False]


def test_the_stream_is_what_the_added_value_is_computed_from() -> None:
    both, constant, _ = calls("add")
    x, product = both.all_input_nodes
    assert adds.stream_of(both, walk.feeding([product])) is x
    bias = constant.all_input_nodes[1]
    assert adds.stream_of(constant, {bias}) is None
    (difference,) = calls("sub")
    stream, cosine = difference.all_input_nodes
    assert adds.stream_of(difference, walk.feeding([cosine])) is stream
    assert adds.stream_of(cosine, walk.feeding([cosine])) is None


def test_the_terms_of_a_sum() -> None:
    both, constant, _ = calls("add")
    assert list(adds.terms(constant, depth=1)) == [constant, *constant.all_input_nodes]
    assert set(adds.terms(constant)) == {constant, both, *both.all_input_nodes} | {
        constant.all_input_nodes[1]
    }


def spelled(
    latents: torch.Tensor, w_in: torch.Tensor, w_bias: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    low = latents.bfloat16()
    alike = low.float().transpose(3, 4).contiguous().view(2, -1)
    other = latents.int().float() + latents.to(torch.float8_e4m3fn).float()
    part = latents[:, 1:] + latents[:, 1:].view(torch.int32)
    choice = torch.where(w_bias > 0, latents, latents.sin())
    of_latents = torch.where(latents > 0, latents, latents.sin())
    return alike, other, part, choice, of_latents, latents - latents.sin()


def test_a_value_is_the_same_behind_casts_views_and_copies_alone() -> None:
    graph_module = traced(spelled, w_in=(12, 12), w_bias=(12,))
    latents = ir.placeholders(graph_module.graph)[0]
    alike, other, part, *_ = returned(graph_module)
    assert adds.origin(alike) is latents
    for operand in (*other.all_input_nodes, *part.all_input_nodes):
        assert adds.origin(operand) is not latents


def test_a_choice_by_a_mask_without_the_latents_has_readings_and_a_difference_has_one() -> None:
    graph_module = traced(spelled, w_in=(12, 12), w_bias=(12,))
    latents = ir.placeholders(graph_module.graph)[0]
    bind(graph_module.graph, frozenset([latents]), frozenset())
    *_, choice, of_latents, difference = returned(graph_module)
    sine = choice.args[2]
    assert adds.readings(choice) == (adds.Addition(latents, sine), adds.Addition(sine, latents))
    assert adds.readings(of_latents) == ()
    assert adds.readings(difference) == (adds.Addition(latents, difference.args[1]),)
