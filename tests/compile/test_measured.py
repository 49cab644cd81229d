"""Sizes that depend on values: every number of valid tokens is a program, and none is mistaken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn

import pab_compile
from helpers.broken_forwards import (
    RANGES,
    SHAPE,
    BrokenDiT,
    CrossAttention,
    HookOracle,
    Inputs,
    PackedDiT,
    caller,
    check_against_oracle,
    compiled,
    denoise,
    draw,
    noise,
    packed_inputs,
    table,
)
from helpers.latte import assert_different, assert_same

TEXT = 7
RANGES_2 = {"cross": 2, "spatial": 2}


@pytest.fixture(autouse=True)
def _kept_in_the_graph() -> Iterator[None]:
    kept = {"capture_dynamic_output_shape_ops": True, "capture_scalar_outputs": True}
    with torch.compiler.config.patch(kept):
        yield


class ValidTokens(CrossAttention):
    """Every video attends to the valid tokens of its own prompt only."""

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert mask is not None
        rows = []
        for number, row in enumerate(mask):
            valid = torch.nonzero(row).flatten()
            torch._check(len(valid) > 0)
            one = slice(number, number + 1)
            rows.append(CrossAttention.forward(self, x[one], text[one, valid]))
        return torch.cat(rows)


class ValidDiT(BrokenDiT):
    """A prompt's padding is left out, which makes sizes depend on the mask's values."""

    def __init__(self) -> None:
        super().__init__()
        self.first.cross, self.second.cross = ValidTokens(), ValidTokens()


class LookingDiT(ValidDiT):
    """Which tokens of the prompt count depends on the latents."""

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return super().forward(latents, timestep, prompt, latents[:, 0, 0].flatten(1)[:, :TEXT] > 0)


class PackedOnceDiT(PackedDiT):
    """Prompts are packed by a mask as an index, which Dynamo can keep in its graph."""

    def pack(self, y: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        packed, lengths = y[mask.bool()], mask.sum(1).tolist()
        for length in lengths:
            torch._check(length > 0)
        torch._check(len(packed) == sum(lengths))
        return packed[None], lengths


def lane(seed: int, *lengths: int, first: int = 0) -> Inputs:
    positions = torch.arange(TEXT)[None] - first
    mask = (positions >= 0) & (positions < torch.tensor(lengths)[:, None])
    return {"prompt": noise(2, TEXT, 12, seed=seed), "mask": mask}


def in_one_graph(model: nn.Module, ranges: dict[str, int], **options: Any) -> Any:
    given = {"ranges": ranges, "window": (0.0, 1.0), "inner": "eager", **options}
    return torch.compile(model, backend="pab", options=given, fullgraph=True)


def counting() -> tuple[list[fx.GraphModule], Callable[..., Any]]:
    """Pieces that were compiled so far, and the backend that compiles them."""
    pieces: list[fx.GraphModule] = []

    def inner(graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        pieces.append(graph_module)
        return graph_module.forward

    return pieces, inner


@pytest.mark.long
def test_valid_tokens_of_a_prompt_are_its_tokens_and_one_site_takes_all_samples() -> None:
    model = draw(ValidDiT)
    inputs = {"latents": noise(*SHAPE), "timestep": table()[:1].expand(2), **lane(1, 5, 3)}
    explanation = pab_compile.explain(model, **inputs)
    assert explanation.num_graphs == 1
    assert explanation.counts() == {"cross": 2, "spatial": 1, "temporal": 1}


def test_lanes_of_other_lengths_reuse_what_hooks_reuse() -> None:
    model = draw(ValidDiT)
    twin, oracle = in_one_graph(model, RANGES), HookOracle(model, RANGES)
    lanes = {"positive": lane(1, 5, 3), "negative": lane(2, 2, 7), "alike": lane(3, 5, 3)}
    check_against_oracle(twin, oracle, SHAPE, lanes, table())
    found = pab_compile.stats(twin)
    assert found.computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}
    assert (found.lanes, found.calls, found.notes) == (3, 18, ())


def test_other_tokens_of_equal_number_run_the_same_program_with_their_own_values() -> None:
    model = draw(ValidDiT)
    pieces, inner = counting()
    twin, oracle = in_one_graph(model, RANGES, inner=inner), HookOracle(model, RANGES)
    check_against_oracle(twin, oracle, SHAPE, {"first": lane(1, 4, 3)}, table())
    before = len(pieces)
    check_against_oracle(twin, oracle, SHAPE, {"last": lane(1, 4, 3, first=3)}, table())
    assert len(pieces) == before > 0
    check_against_oracle(twin, oracle, SHAPE, {"longer": lane(1, 4, 4)}, table())
    assert len(pieces) > before


def test_a_mask_that_changes_within_a_generation_reuses_nothing_of_the_one_before() -> None:
    model = draw(ValidDiT)
    twin, before, after = in_one_graph(model, RANGES_2), lane(1, 4, 3), lane(1, 4, 3, first=3)
    for step, timestep in enumerate(table()):
        given = {"latents": noise(*SHAPE, seed=step), "timestep": timestep.expand(2)}
        inputs = {**given, **(before if step < 3 else after)}
        compare = assert_different if step in (1, 5) else assert_same
        compare(twin(**inputs), model(**inputs))


@pytest.mark.long
def test_a_mask_that_is_written_to_within_a_generation_is_another_one() -> None:
    model = draw(ValidDiT)
    twin, prompt = in_one_graph(model, RANGES_2), lane(1, 4, 3)
    for step, timestep in enumerate(table(2)):
        inputs = {"latents": noise(*SHAPE, seed=step), "timestep": timestep.expand(2), **prompt}
        assert_same(twin(**inputs), model(**inputs))
        prompt["mask"].copy_(lane(1, 4, 3, first=3)["mask"])


def test_sizes_that_depend_on_the_latents_are_computed() -> None:
    model = draw(LookingDiT)
    twin = in_one_graph(model, {"cross": 2})
    for step, timestep in enumerate(table(2)):
        latents = noise(*SHAPE, seed=step)
        latents[:, 0, 0].flatten(1)[:, : 1 + step] = 1  # another number of tokens at every step
        latents[:, 0, 0].flatten(1)[:, 1 + step : TEXT] = -1
        inputs = {"latents": latents, "timestep": timestep.expand(2), "prompt": noise(2, TEXT, 12)}
        assert_same(twin(**inputs), model(**inputs))


@pytest.mark.long
def test_prompts_packed_by_masked_select_and_tolist_are_one_graph_that_reuses() -> None:
    model = draw(PackedOnceDiT)
    twin, oracle = in_one_graph(model, RANGES), HookOracle(model, RANGES)
    lanes = {"positive": packed_inputs(1), "negative": packed_inputs(2, (2, 6))}
    check_against_oracle(twin, oracle, (2, 4, 3, 4, 8), lanes, table(), name="x")
    found = pab_compile.stats(twin)
    assert found.computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}
    assert (found.lanes, found.notes) == (2, ())


@pytest.mark.long
def test_a_graph_of_several_measures_its_own_sizes() -> None:
    model = draw(ValidDiT)
    model.places = ("embedding", "blocks")
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    check_against_oracle(twin, oracle, SHAPE, {"a": lane(1, 5, 3), "b": lane(2, 2, 7)}, table())
    assert pab_compile.stats(twin).computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}


def test_without_attention_it_is_computed_as_it_is() -> None:
    class Plain(nn.Module):
        def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return latents[torch.nonzero(timestep).flatten()] * timestep.sum().item()

    twin = in_one_graph(Plain(), {}, on_unsupported="passthrough")
    for timestep in (torch.tensor([1.0, 0.0]), torch.tensor([2.0, 3.0])):
        inputs = (noise(2, 3, 4), timestep)
        with pytest.warns(UserWarning, match="compiled without reuse"):
            assert torch.equal(twin(*inputs), Plain()(*inputs))


def test_steps_are_those_of_eager_where_nothing_is_reused() -> None:
    model = draw(ValidDiT)
    twin = in_one_graph(model, {"cross": 1})
    steps = [
        denoise(caller(each), noise(*SHAPE), {"a": lane(1, 5, 3)}, table(3))
        for each in (twin, model)
    ]
    for ours, theirs in zip(*steps, strict=True):
        assert torch.equal(ours, theirs)
