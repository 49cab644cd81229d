"""Graphs of several that hold no attention: what is the same at every step runs once per lane."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import pab_compile
from helpers.broken_forwards import (
    CHANNELS,
    SHAPE,
    TEXT_WIDTH,
    WIDTH,
    Block,
    compiled,
    draw,
    noise,
    sinusoids,
    table,
)
from helpers.counting import counting

RANGES = dict.fromkeys(("spatial", "cross", "mlp"), 3)
PLAN: dict[str, Any] = {"cut": "branch", "coalesce": True}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class SeveralGraphs(nn.Module):
    """A large projection of the prompt, attention and MLP, each in a graph of its own.

    Args:
        writes: whether Python code writes to the projected prompt.
    """

    def __init__(self, writes: bool = False) -> None:
        super().__init__()
        self.writes = writes
        self.time, self.embed = nn.Linear(16, WIDTH), nn.Linear(CHANNELS, WIDTH)
        self.text = nn.Sequential(nn.Linear(TEXT_WIDTH, 640), nn.Linear(640, WIDTH))
        self.block, self.last = Block("spatial"), nn.Linear(WIDTH, CHANNELS)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
        prompt_2: torch.Tensor,
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        text = self.text(prompt_2)
        torch._dynamo.graph_break()
        if self.writes:
            text.mul_(0.5)
            torch._dynamo.graph_break()
        emb = self.time(sinusoids(timestep).to(latents.dtype))
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        x = self.block(x, emb, self.text(prompt) + text, frames)
        torch._dynamo.graph_break()
        x = x + emb[:, None] * self.mlp(x)
        return self.last(x).view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)


class LateProjection(SeveralGraphs):
    """The second prompt is projected in a graph behind the attention."""

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
        prompt_2: torch.Tensor,
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep).to(latents.dtype))
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        x = self.block(x, emb, self.text(prompt), frames)
        torch._dynamo.graph_break()
        text = self.text(prompt_2)
        torch._dynamo.graph_break()
        x = self.last(x + text.mean(1, keepdim=True))
        return x.view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)


def steps(prompts: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[Any]:
    """The inputs of every call: of each step one call per pair of prompts."""
    times = table(6)
    return [
        {
            "latents": noise(*SHAPE, seed=index).to(dtype),
            "timestep": times[index].expand(2),
            "prompt": _text(one).to(dtype),
            "prompt_2": _text(two).to(dtype),
        }
        for index in range(6)
        for one, two in prompts
    ]


def _text(seed: int) -> torch.Tensor:
    return noise(2, 7, TEXT_WIDTH, seed=seed)


@pytest.mark.sample("True-dtype1")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("writes", [False, True])
def test_a_projection_of_the_prompt_runs_once_and_an_mlp_is_reused(
    writes: bool, dtype: torch.dtype
) -> None:
    model = draw(SeveralGraphs, writes).to(dtype)
    counted = [0]
    twin = compiled(model, RANGES, inner=counting(counted), **PLAN)
    flops, outputs = [], []
    for inputs in (given := steps([(1, 2)], dtype)):
        counted[0] = 0
        outputs.append(twin(**inputs))
        flops.append(counted[0])
    for step in (0, 3):
        assert torch.equal(outputs[step], model(**given[step]))
    assert not torch.equal(outputs[1], model(**given[1]))
    assert flops[1] < 0.05 * flops[0]
    before = pab_compile.explain(model, options={"ranges": RANGES, **PLAN}, **given[0])
    assert pab_compile.explain(twin).reuse_flops == before.reuse_flops == flops[1]
    assert pab_compile.stats(twin).reused["mlp"] == 8  # of two MLPs at four steps


@pytest.mark.parametrize(("kind", "writes"), [(SeveralGraphs, True), (LateProjection, False)])
def test_calls_of_a_step_that_differ_in_one_prompt_only_are_told_apart(
    kind: type[SeveralGraphs], writes: bool
) -> None:
    model = draw(kind, writes)
    twin = compiled(model, {"mlp": 2})
    for prompts in ([(1, 2), (1, 3)], [(1, 2), (4, 2)], [(1, 2), (1, 2)]):
        for number, inputs in enumerate(steps(prompts)):
            if number // len(prompts) % 2 == 0:  # a step that computes
                torch.testing.assert_close(twin(**inputs), model(**inputs), atol=0, rtol=0)
            else:
                twin(**inputs)
        pab_compile.reset()


@pytest.mark.parametrize("kind", [SeveralGraphs, LateProjection])
def test_a_prompt_that_changes_between_steps_is_projected_anew(kind: type[SeveralGraphs]) -> None:
    model = draw(kind)
    twin = compiled(model, {"temporal": 7})  # no site of this kind: the projections alone are kept
    given = [{**inputs, "prompt_2": _text(n)} for n, inputs in enumerate(steps([(1, 2)]))]
    for inputs in given:
        x = model(**inputs)
        assert torch.equal(twin(**inputs), x)


def test_without_reuse_the_graphs_give_what_eager_gives() -> None:
    model = draw(SeveralGraphs)
    twin = compiled(model, {}, **PLAN)
    for inputs in steps([(1, 2), (3, 4)])[:4]:
        assert torch.equal(twin(**inputs), model(**inputs))
