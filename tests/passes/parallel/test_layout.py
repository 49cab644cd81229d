"""How whole graphs are sharded, and that their ranks compute what one device computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from helpers.captured import (
    BATCH,
    CHANNELS,
    FRAMES,
    SPACE,
    TEXT,
    TOKENS,
    Captured,
    analysed,
    attend,
    captured,
    joint_attention,
    latents_of,
    lines,
    small_latte,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_golden
from helpers.latte import assert_same
from helpers.lockstep import run_ranks
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.choose import Choice, candidates, choose
from pab_compile.passes.parallel.layout import Layout, lay_out
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.program import Program


def temporal_block(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_qkv: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Attention along the frames of every place, as in the temporal half of an STDiT block."""
    x = tokens_of(latents, w_in).reshape(BATCH, FRAMES, SPACE, CHANNELS)
    emb = time_embedding(timestep, w_time)
    y = layer_norm(x, (CHANNELS,)) * (1 + emb[:, None])
    y = linear(y.transpose(1, 2).reshape(BATCH * SPACE, FRAMES, CHANNELS), w_qkv)
    y = linear(attend(y, y, y), w_out)
    y = y.reshape(BATCH, SPACE, FRAMES, CHANNELS).transpose(1, 2)
    return latents_of(x + y)


def laid_out(model: Captured, axis: str, num_ranks: int) -> tuple[Program, Layout]:
    program = analysed(model)
    axes = dict(candidates(program.inferred_axes))
    mixers = program.mixers
    return program, lay_out(model.graph, program.inferred_axes, mixers, axes[axis], num_ranks)


def check_ranks(model: Captured, layout: Layout) -> None:
    """All ranks return what one device returns."""
    modules = [
        localise(model.graph_module, layout, Ranks(layout.num_ranks, rank)).graph_module
        for rank in range(layout.num_ranks)
    ]
    with torch.no_grad():
        for outputs in run_ranks(modules, model.args):
            for got, expected in zip(outputs, model.eager(), strict=True):
                assert_same(got, expected)


@pytest.mark.sample("t")
@pytest.mark.parametrize("axis", ["t", "h", "w"])
def test_ranks_compute_together_what_one_device_computes(axis: str) -> None:
    _, layout = laid_out(small_latte(batch=2), axis, 3)
    check_ranks(small_latte(batch=2), layout)


def test_frames_are_switched_to_places_around_temporal_attention_only() -> None:
    program, layout = laid_out(small_latte(batch=2), "t", 2)
    (detour,) = layout.detours
    kinds = {m.kind for m in program.mixers if m.nodes[0] in detour.verdicts}
    assert kinds == {"temporal"} and detour.axis.name == "h*w"
    (entering,), (leaving,) = detour.entering, detour.leaving
    assert entering.num_bytes == leaving.num_bytes == ir.num_bytes(entering.node)
    assert ir.is_call(entering.node, "add")  # the modulated input, not q, k and v


def test_the_graph_of_a_rank_in_print() -> None:
    model = captured(temporal_block)
    _, layout = laid_out(model, "t", 2)
    check_ranks(model, layout)
    local = localise(model.graph_module, layout, Ranks(2, 0, "ranks"))
    nodes = [n for n in local.graph_module.graph.nodes if n.op == "call_function"]
    first = next(i for i, n in enumerate(nodes) if ir.is_call(n, "layer_norm"))
    last = max(i for i, n in enumerate(nodes) if ir.is_call(n, "wait_tensor"))
    for node in nodes:
        ir.forget_axis_names(node)
    check_golden("sharded_temporal_block", lines(nodes[first : last + 1]))


def full_attention(is_causal: bool, wider: int = 0) -> Captured:
    """One head of attention over all tokens, whose values may be wider than its keys."""

    def model(latents, timestep, w_in, w_time, w_q, w_k, w_v, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        q, k, v = (linear(x, weight) for weight in (w_q, w_k, w_v))
        v = torch.cat([v, v], -1) if wider else v
        y = scaled_dot_product_attention(q, k, v, is_causal=is_causal)[..., :CHANNELS]
        return latents_of(x + linear(y, w_out))

    return captured(model)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_without_a_ring_queries_stay_and_keys_come_from_everywhere(num_ranks: int) -> None:
    model = full_attention(is_causal=False, wider=1)
    _, layout = laid_out(model, "t", num_ranks)
    (detour,) = layout.detours
    (attention,) = detour.kept
    assert [crossing.node for crossing in detour.entering] == list(attention.args[1:3])
    assert not detour.leaving
    check_ranks(model, layout)


def test_attention_that_looks_at_the_places_of_its_queries_is_computed_in_full() -> None:
    model = full_attention(is_causal=True)
    _, layout = laid_out(model, "t", 2)
    assert [ir.op_name(node) for node in layout.in_full] == ["scaled_dot_product_attention"]
    assert len(layout.entries) == 2  # the latents, and what all ranks computed
    check_ranks(model, layout)


def test_one_head_whose_queries_are_its_keys_runs_in_a_ring() -> None:
    model = captured(joint_attention)
    _, layout = laid_out(model, "t", 2)
    assert layout.detours[0].ring is not None and not layout.in_full
    check_ranks(model, layout)


def scattered(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    where: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_text: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Prompt and tokens are put into one sequence, at places that only a tensor knows."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    both = torch.cat([linear(prompt, w_text), x], 1)
    x = torch.zeros_like(both).index_copy(1, where, both)
    for _ in range(2):
        q, k = (linear(x, w).unflatten(-1, (2, -1)).transpose(1, 2) for w in (w_q, w_k))
        x = x + linear(scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2), w_out)
    return latents_of(x.index_select(1, where)[:, TEXT:])


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_a_sequence_in_an_order_that_is_not_known_is_shared_as_it_is(num_ranks: int) -> None:
    order = torch.randperm(TEXT + TOKENS, generator=torch.Generator().manual_seed(0))
    model = captured(scattered, where=order)
    found = choose(analysed(model), num_ranks, lambda _: 1.0)
    assert found.option.name == "packed" and found.option.shared > 0.9
    check_ranks(model, found.layout)


def test_too_few_positions_are_refused_before_anything_runs() -> None:
    with pytest.raises(ShardingError, match="3 positions, fewer than the 4 ranks"):
        laid_out(captured(temporal_block), "t", 4)


def test_an_axis_that_is_too_short_gives_way_to_another() -> None:
    found = choose(analysed(captured(temporal_block)), 4, lambda _: 1.0)  # 3 frames of 2 x 5
    assert found.option.name == "w"
    assert "3 positions, fewer than the 4 ranks" in "\n".join(found.lines())


def strange(op: Callable[[torch.Tensor], torch.Tensor]) -> Captured:
    """A model with another op between two attentions."""

    def model(latents, timestep, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        x = x.reshape(BATCH * FRAMES, SPACE, CHANNELS)
        x = x + linear(attend(x, x, x), w_out)
        x = x + op(x)
        x = x + linear(attend(x, x, x), w_out)
        return latents_of(x)

    return captured(model)


def test_an_op_without_a_rule_is_computed_in_full_between_attentions() -> None:
    model = strange(lambda x: torch.cdist(x, x).sum(-1, keepdim=True))
    _, layout = laid_out(model, "t", 2)
    assert "cdist" in [ir.op_name(node).strip("_") for node in layout.in_full]
    check_ranks(model, layout)


def linear_attention(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    w_v: torch.Tensor,
) -> torch.Tensor:
    """One head of linear attention: the sums over its keys are small."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    x = x + attend(x, x, x)
    q, k, v = (linear(x, weight).relu() for weight in (w_q, w_k, w_v))
    y = q @ (k.transpose(1, 2) @ v)
    return latents_of(x + y / (q @ k.sum(1, keepdim=True).transpose(1, 2) + 1))


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_sums_over_tokens_are_added_up(num_ranks: int) -> None:
    model = captured(linear_attention)
    _, layout = laid_out(model, "t", num_ranks)
    sums = [d for d in layout.detours if any(crossing.adds_up for crossing in d.leaving)]
    assert [ir.op_name(detour.core[0]) for detour in sums] == ["matmul", "sum"]
    check_ranks(model, layout)


def test_an_op_that_draws_is_refused_with_its_line() -> None:
    with pytest.raises(ShardingError, match=r"rand_like.*\n?.*stands in the way, since it draws"):
        laid_out(strange(torch.rand_like), "t", 2)


def test_a_refusal_says_why_and_what_to_do_in_three_lines() -> None:
    with pytest.raises(ShardingError) as caught:
        choose(analysed(strange(torch.rand_like)), 2, lambda _: 1.0)
    why, what, advice = str(caught.value).splitlines()
    assert why == "No axis of the latents (t, h, w, s) can be sharded over 2 ranks."
    assert "draws random numbers" in what and advice.startswith("Run the model on one rank.")
    program = analysed(captured(temporal_block))  # 3 frames of 2 x 5
    with pytest.raises(ShardingError, match=r"Leave shard out, or set it to w\.$"):
        choose(program, 4, lambda _: 1.0, "t")
    with pytest.raises(ShardingError, match=r"fewer ranks: 5 can share the axis 'w'\.$"):
        choose(program, 40, lambda _: 1.0)
    with pytest.raises(ShardingError, match=r"fewer ranks: 3 can share the axis 't'\.$"):
        choose(program, 40, lambda _: 1.0, "t")
    with pytest.raises(ShardingError, match=r"no axis 'x'.*or choose one of t, h, w"):
        choose(program, 2, lambda _: 1.0, "x")


def chosen(shares: Mapping[str, float], num_ranks: int = 2, axis: str | None = None) -> Choice:
    return choose(
        analysed(small_latte(batch=2)), num_ranks, lambda site: shares.get(site.kind, 1.0), axis
    )


def test_the_axis_is_that_whose_attention_is_computed_less_often() -> None:
    assert chosen({"spatial": 0.7, "temporal": 0.5}).option.name == "t"
    assert chosen({"spatial": 0.2, "temporal": 0.9}).option.name != "t"


def test_the_choice_is_printed_with_its_reasons() -> None:
    found = chosen({"spatial": 0.7, "temporal": 0.5}).lines()
    assert found[0] == "sharded axis: t, over 2 ranks"
    assert any("1 x temporal attention runs along h*w, computed at 50%" in line for line in found)


def test_a_stated_axis_is_taken_and_an_unknown_one_refused() -> None:
    assert chosen({}, axis="w").option.name == "w"
    with pytest.raises(ShardingError, match="no axis 'c'"):
        chosen({}, axis="c")
