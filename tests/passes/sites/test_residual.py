"""Residual branches without a token mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, linear

import helpers.captured as models
from helpers.captured import (
    CHANNELS,
    TEXT,
    TOKENS,
    Captured,
    analysed,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
)
from helpers.residuals import FORMS, NO_RESIDUALS, OF_THE_STEP, residual_model
from pab_compile.passes.graph import ir
from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.residual import Branch, cut_of, find_branches
from pab_compile.passes.sites.site import CUTS, OUTPUT

OF_SITES = [cut for cut in CUTS if cut != OUTPUT]


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
    return [str(node.target) for b in branches_of(in_block(body)) for node in cut_of(b, cut)]


def test_a_gated_mlp_is_one_branch_with_two_cuts() -> None:
    (branch,) = branches_of(captured(models.mlp_block))
    assert branch.ends[0].name == "mul_1"
    assert {node.name for node in branch.nodes} == {"mul_1", "linear_4", "gelu", "linear_3", "mul"}
    assert branch.last_contraction.name == "linear_4"
    assert [node.name for node in cut_of(branch, "attention")] == ["linear_4"]
    assert [node.name for node in cut_of(branch, "gated")] == ["mul_1"]


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
    assert [end.name for branch in found for end in branch.ends] == ["linear_2", "linear_3"]
    assert not set(found[0].nodes) & set(found[1].nodes)


def test_a_branch_may_be_as_long_as_a_recurrence_over_frames() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        state = linear(x, up)
        for _ in range(500):
            state = state.tanh()
        return x + state

    (branch,) = branches_of(in_block(body))
    assert len(branch.nodes) == 501


def test_successive_branches_are_found_in_order() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        x = x + linear(gelu(x), up)
        return x + linear(gelu(x), down)

    found = branches_of(in_block(body))
    assert [end.name for branch in found for end in branch.ends] == ["linear_2", "linear_3"]


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
    assert cut_of(branch, "attention") == (branch.last_contraction,)


def test_a_bias_that_does_not_change_stays_in_the_cut() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        return x + (linear(gelu(x), down) + up[0])

    (branch,) = branches_of(in_block(body))
    assert cut_of(branch, "attention") == cut_of(branch, "gated") == branch.ends


def together(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_text: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """Video and text attend together, then go through one MLP together."""
    x, text = tokens_of(latents, w_in), linear(prompt, w_text)
    emb = time_embedding(timestep, w_time)
    both = attend(*[torch.cat([text, x], 1)] * 3)
    text, x = text + both[:, :TEXT], x + both[:, TEXT:]
    both = linear(gelu(linear(torch.cat([text * emb, x * emb], 1), w_up)), w_down)
    x, text = x + emb * both[:, TEXT:], text + emb * both[:, :TEXT]
    return latents_of(x + text.mean(1, keepdim=True))


def test_an_mlp_that_two_streams_share_is_one_branch_with_an_end_in_each() -> None:
    (branch,) = branches_of(captured(together))
    shapes = {cut: [node.meta["val"].shape[1] for node in cut_of(branch, cut)] for cut in OF_SITES}
    assert list(shapes.values()) == [[TOKENS, TEXT]] * len(OF_SITES)
    assert [ir.op_name(node) for node in cut_of(branch, "gated")] == ["mul", "mul"]
    assert [ir.op_name(node) for node in cut_of(branch, "attention")] == ["slice", "slice"]
    assert ir.op_name(branch.last_contraction) == "linear"


def test_the_region_of_a_shared_mlp_holds_all_of_it() -> None:
    (site,) = [site for site in analysed(captured(together)).sites if site.kind == "mlp"]
    assert [ir.op_name(node) for node in site.region].count("linear") == 2
    assert site.cache_bytes == 4 * 2 * (TEXT + TOKENS) * CHANNELS


def ending(after: Callable[..., torch.Tensor]) -> Captured:
    """Video and text attend twice, then go through an MLP that adds to the video alone."""

    def model(latents, timestep, prompt, w_in, w_time, w_text, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        for _ in range(2):
            both = attend(*[torch.cat([text, x], 1)] * 3)
            text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        both = linear(gelu(linear(torch.cat([text * emb, x * emb], 1), w_up)), w_down)
        return latents_of(after(x + emb * both[:, TEXT:], text))

    return captured(model)


def test_an_mlp_that_is_the_last_to_read_a_stream_is_a_branch_of_the_other() -> None:
    (branch,) = branches_of(ending(lambda x, text: x))
    shapes = [node.meta["val"].shape[1] for cut in OF_SITES for node in cut_of(branch, cut)]
    assert shapes == [TOKENS] * len(OF_SITES)
    assert sum(ir.op_name(node) == "linear" for node in branch.nodes) == 2


def test_an_mlp_that_reads_a_stream_which_goes_on_is_no_branch_of_the_other_alone() -> None:
    assert branches_of(ending(lambda x, text: x + text.mean(1, keepdim=True))) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_network_whose_whole_output_is_added_to_the_latents_is_no_branch_of_them(
    is_whole: bool, dtype: torch.dtype
) -> None:
    def model(latents, timestep, w_in, w_time, w_up, w_down, w_out):  # type: ignore[no-untyped-def]
        given, up, down, out = (w.to(dtype) for w in (latents, w_up, w_down, w_out))
        x = tokens_of(given, w_in.to(dtype))
        y = attend(x, x, x) + linear(gelu(linear(x, up)), down)  # no stream, though it is a sum
        x = x + y * time_embedding(timestep, w_time).to(dtype)
        made = latents_of(linear(x, out))
        return given + made if is_whole else made

    assert branches_of(captured(model)) == []


def test_mlps_of_two_streams_that_share_nothing_are_two_branches() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_text, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        both = attend(*[torch.cat([text, x], 1)] * 3)
        text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        text, x = text + linear(gelu(text * emb), w_up), x + linear(gelu(x * emb), w_down)
        return latents_of(x + text.mean(1, keepdim=True))

    assert [len(branch.ends) for branch in branches_of(captured(model))] == [1, 1]


@pytest.mark.parametrize("cut", OF_SITES)
def test_a_branch_with_two_ends_computes_what_the_model_does(cut: str) -> None:
    model = captured(together)
    sites = analysed(model, cut).sites
    branched, count = broadcast(model.graph_module, sites, lambda site: True)
    verify(branched, model.graph_module)
    assert count == 2
    assert torch.equal(branched(*model.args)[0], model.eager()[0])


def test_what_only_one_of_two_streams_reaches_is_not_shared() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_text, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        both = attend(*[torch.cat([text, x], 1)] * 3)
        text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        both = linear(gelu(torch.cat([text * emb, (text * emb).mean(1, keepdim=True)], 1)), w_up)
        text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        return latents_of(x + text.mean(1, keepdim=True))

    assert [len(branch.ends) for branch in branches_of(captured(model))] == [1]


def test_streams_that_share_no_product_share_no_branch() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_text, w_up, w_down):  # type: ignore[no-untyped-def]
        x, text = tokens_of(latents, w_in), linear(prompt, w_text)
        emb = time_embedding(timestep, w_time)
        both = attend(*[torch.cat([text, x], 1)] * 3)
        text, x = text + both[:, :TEXT], x + both[:, TEXT:]
        both = torch.cat([text, x], 1).softmax(1) * emb
        text, x = text + linear(both[:, :TEXT], w_up), x + linear(both[:, TEXT:], w_down)
        return latents_of(x + text.mean(1, keepdim=True))

    assert branches_of(captured(model)) == []


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("name", [*OF_THE_STEP, "float32 around the sum"])
def test_before_its_gates_a_residual_is_cached_in_the_type_of_its_projection(
    name: str, low: bool
) -> None:
    model = residual_model({**FORMS, **OF_THE_STEP}[name], low)
    sites = analysed(model, "attention").sites
    assert [site.kind for site in sites] == ["full", "mlp"]
    for site in sites:
        (node,) = site.cut
        assert ir.op_name(node) == "linear"
        assert node.meta["val"].dtype == (torch.bfloat16 if low else torch.float32)


@pytest.mark.parametrize("name", NO_RESIDUALS)
def test_what_is_added_to_no_stream_is_no_residual(name: str) -> None:
    sites = analysed(residual_model(NO_RESIDUALS[name])).sites
    assert [site.kind for site in sites] == ["full"]


GIVEN = 4


def by_parts(x: Any, emb: Any, up: Any, down: Any) -> Any:
    """Given tokens and denoised ones have gates of their own."""
    y = linear(gelu(linear(x, up)), down)
    return torch.cat([x[:, :GIVEN] + down[0] * y[:, :GIVEN], x[:, GIVEN:] + emb * y[:, GIVEN:]], 1)


def by_split_parts(x: Any, emb: Any, up: Any, down: Any) -> Any:
    sizes = [GIVEN, TOKENS - GIVEN]
    (a, b), (c, d) = x.split(sizes, 1), linear(gelu(linear(x, up)), down).split(sizes, 1)
    return torch.cat([a + emb * c, b + (1 + emb) * d], 1)


def of_the_denoised(x: Any, emb: Any, up: Any, down: Any) -> Any:
    """Given tokens stay as they are."""
    y = linear(gelu(linear(x, up)), down)
    return torch.cat([x[:, :GIVEN], x[:, GIVEN:] + emb * y[:, GIVEN:]], 1)


@pytest.mark.parametrize(
    ("body", "ends"), [(by_parts, 2), (by_split_parts, 2), (of_the_denoised, 1)]
)
def test_a_branch_may_be_added_to_parts_of_its_stream(body: Any, ends: int) -> None:
    model = in_block(body)
    (branch,) = branches_of(model)
    assert [ir.op_name(node) for node in branch.ends] == ["mul"] * ends
    assert cut_of(branch, "branch") == cut_of(branch, "gated") == branch.ends
    site = next(site for site in analysed(model, "gated").sites if site.kind == "mlp")
    assert {"linear", "gelu"} <= {ir.op_name(node) for node in site.region}
    branched, count = broadcast(model.graph_module, [site], lambda site: True)
    verify(branched, model.graph_module)
    assert count == 1
    assert torch.equal(branched(*model.args)[0], model.eager()[0])


def test_a_part_of_another_tensor_is_no_stream() -> None:
    def body(x: Any, emb: Any, up: Any, down: Any) -> Any:
        other = torch.cat([x, x.sin()], 1)
        return other[:, TOKENS:] + emb * linear(gelu(linear(x, up)), down)

    assert branches_of(in_block(body)) == []
