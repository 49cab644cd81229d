"""Forwards that Dynamo breaks into several graphs: classified and reused as if they were one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import pab_compile
from helpers.broken_forwards import (
    RANGES,
    SHAPE,
    BrokenDiT,
    HookOracle,
    PackedDiT,
    caller,
    check_against_oracle,
    compiled,
    denoise,
    draw,
    noise,
    packed_inputs,
    prompts,
    sinusoids,
    table,
)
from pab_compile.errors import UnsupportedModelError

BREAKS = [("time",), ("embedding",), ("blocks",), ("item",), ("tail",), ("time", "blocks", "tail")]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.sample("places1")
@pytest.mark.parametrize("places", [("embedding",), ("item",), ("time", "blocks", "tail")])
def test_without_reuse_a_broken_forward_gives_what_eager_gives(places: tuple[str, ...]) -> None:
    model = draw(BrokenDiT, places)
    twin = compiled(model, {})
    for step in table(3):
        inputs = {"latents": noise(*SHAPE), "timestep": step.expand(2), **prompts(1)["lane1"]}
        torch.testing.assert_close(twin(**inputs), model(**inputs), atol=0, rtol=0)


@pytest.mark.sample("places3")
@pytest.mark.parametrize("places", BREAKS)
def test_a_broken_forward_reuses_as_the_oracle_does(places: tuple[str, ...]) -> None:
    model = draw(BrokenDiT, places)
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
    found = pab_compile.stats(twin)
    assert found.computed_steps == {k: len(v) for k, v in oracle.computed.items()}
    assert found.calls == 6
    assert found.notes == ()
    check_against_oracle(twin, oracle, SHAPE, prompts(2, 3), table(8))  # two lanes, 8 steps
    assert pab_compile.stats(twin).lanes == 2


@pytest.mark.long
def test_a_broken_forward_gives_what_the_same_model_in_one_graph_gives() -> None:
    model, whole = draw(BrokenDiT, ("time", "blocks", "tail")), draw(BrokenDiT)
    broken, one = compiled(model, RANGES), compiled(whole, RANGES)
    start = noise(*SHAPE)
    mine = list(denoise(caller(broken), start, prompts(1, 2), table()))
    theirs = list(denoise(caller(one), start, prompts(1, 2), table()))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)
    assert pab_compile.stats(broken).patterns == pab_compile.stats(one).patterns


def test_explain_reports_all_graphs_of_a_broken_forward_in_one_table() -> None:
    model = draw(BrokenDiT, ("time", "blocks", "tail"))
    inputs = {"latents": noise(*SHAPE), "timestep": torch.ones(2), **prompts(1)["lane1"]}
    found = pab_compile.explain(model, **inputs)
    assert found.counts() == {"spatial": 1, "temporal": 1, "cross": 2}
    assert (found.num_graphs, found.clock, found.latents) == (4, "timestep", "latents")
    assert "runs as 4 graphs" in str(found)
    assert "graph_break" in found.breaks[0]


@pytest.mark.long
def test_packed_prompts_and_item_calls_are_classified_across_six_graphs() -> None:
    model = draw(PackedDiT)
    inputs = {"x": noise(2, 4, 3, 4, 8), "timestep": torch.ones(2), **packed_inputs(1)}
    found = pab_compile.explain(model, **inputs)
    assert found.counts() == {"spatial": 2, "temporal": 2, "cross": 4}
    assert (found.num_graphs, found.clock, found.latents) == (6, "timestep", "x")


@pytest.mark.sample("True")
@pytest.mark.parametrize("by_value", [False, True])
def test_packed_prompts_reuse_as_the_oracle_does(by_value: bool) -> None:
    model = draw(PackedDiT)
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    lanes = {"cond": packed_inputs(1), "uncond": packed_inputs(2, (2, 2))}
    how = {"by_value": by_value, "name": "x"}
    if by_value:
        with pab_compile.generation(timesteps=table()):
            check_against_oracle(twin, oracle, (2, 4, 3, 4, 8), lanes, table(), **how)
    else:
        check_against_oracle(twin, oracle, (2, 4, 3, 4, 8), lanes, table(), **how)
        found = pab_compile.stats(twin)
        assert found.computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}
        assert (found.lanes, found.calls) == (2, 12)
        # Another size and number of steps, the same prompts.
        check_against_oracle(twin, oracle, (2, 4, 2, 6, 4), lanes, table(5), **how)


@pytest.mark.long
def test_an_exception_between_two_graphs_drops_the_generation() -> None:
    model = draw(BrokenDiT, ("item",))
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
    steps = denoise(caller(twin), noise(*SHAPE, seed=9), prompts(1), timesteps := table())
    next(steps), next(steps)
    with pytest.raises(ValueError, match="diverged"):
        twin(1e9 * noise(*SHAPE), timesteps[2].expand(2), **prompts(1)["lane1"])
    check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
    found = pab_compile.stats(twin)
    assert found.computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}
    assert found.notes == ()


def test_a_tensor_made_between_two_graphs_is_never_taken_for_the_prompt() -> None:
    class Drifting(BrokenDiT):
        """Between the graphs, eager code adds a drift that changes at every step to the prompt."""

        def forward(
            self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
        ) -> torch.Tensor:
            batch, _, frames, height, width = latents.shape
            emb = self.time(sinusoids(timestep))
            x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, 4))
            text = drifting(self.text(prompt), timestep)
            x = self.first(x, emb, text, frames)
            return self.last(x).view(batch, frames, height, width, 4).permute(0, 4, 1, 2, 3)

    model = draw(Drifting)
    twin = compiled(model, {"spatial": 1})
    for step in table(4):
        inputs = {"latents": noise(*SHAPE), "timestep": step.expand(2), **prompts(1)["lane1"]}
        torch.testing.assert_close(twin(**inputs), model(**inputs), atol=0, rtol=0)


@torch.compiler.disable
def drifting(text: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return text * timestep[:, None, None]


def test_a_model_whose_graphs_hold_no_attention_says_so_at_its_second_call() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            x = self.layer(latents + timestep.sin()[:, None, None])
            torch._dynamo.graph_break()
            return self.layer(x)

    twin = compiled(draw(Plain), {})
    inputs = (noise(2, 3, 4), torch.ones(2))
    twin(*inputs)
    with pytest.raises(UnsupportedModelError, match="none of them holds an attention"):
        twin(*inputs)
