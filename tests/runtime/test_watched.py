"""What is computed from tensors that Python makes is kept as long as these have equal values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

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
from pab_compile.runtime.watched import Watched

OPTIONS: dict[str, Any] = {"ranges": {"spatial": 2, "cross": 2, "mlp": 2}, "cut": "branch"}
STEPS = 8
TABLES = tuple(noise(7, WIDTH, seed=seed) for seed in range(STEPS))


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class RefinedPrompt(nn.Module):
    """The prompt is refined with a table that Python chooses between two graphs.

    Args:
        in_place: whether Python writes each table into the memory of the first.
    """

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place
        self.time, self.embed = nn.Linear(16, WIDTH), nn.Linear(CHANNELS, WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.refine = nn.Sequential(
            nn.Linear(WIDTH, 640), nn.GELU(), nn.Linear(640, WIDTH), nn.LayerNorm(WIDTH)
        )
        self.block, self.last = Block("spatial"), nn.Linear(WIDTH, CHANNELS)
        self.chosen = 0
        self.memory: torch.Tensor | None = None

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep))
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        text = self.text(prompt) + self.table()
        text = (text + self.refine(text)) * (1 + emb[:, None])
        x = self.block(x, emb, text, frames) + text.mean(1, keepdim=True)
        return self.last(x).view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)

    @torch.compiler.disable
    def table(self) -> torch.Tensor:
        """The table that is chosen now."""
        if not self.in_place:
            return TABLES[self.chosen].clone()
        self.memory = memory = TABLES[0].clone() if self.memory is None else self.memory
        memory.data.copy_(TABLES[self.chosen])  # no version tells of it
        return memory


def run(model: Any, twin: Any, chosen: tuple[int, ...]) -> Iterator[tuple[int, Any, Any]]:
    """The number of each step, and what the model and its compiled twin return."""
    times = table(STEPS)
    for step, number in enumerate(chosen):
        model.chosen = number
        given = {
            "latents": noise(*SHAPE, seed=step),
            "timestep": times[step].expand(2),
            "prompt": noise(2, 7, TEXT_WIDTH),
        }
        yield step, model(**given), twin(**given)


def test_tokens_from_a_table_that_stays_the_same_are_computed_once() -> None:
    model = draw(RefinedPrompt)
    counted = [0]
    twin = compiled(model, OPTIONS["ranges"], inner=counting(counted), cut="branch")
    flops = []
    for step, expected, found in run(model, twin, (0,) * STEPS):
        assert step % 2 or torch.equal(found, expected)
        flops.append(counted[0])
        counted[0] = 0
    refined = 2 * 2 * 7 * WIDTH * 640 * 2
    assert flops[0] - flops[2] == refined
    assert flops[3] < 0.1 * refined
    assert pab_compile.explain(twin).reuse_flops == flops[3]
    assert pab_compile.stats(twin).reused["spatial"] == STEPS // 2


@pytest.mark.parametrize(
    ("chosen", "in_place"),
    [((0, 0, 0, 1, 1, 1, 0, 0), True), ((0, 1, 2, 3, 4, 5, 6, 7), False)],
)
def test_another_table_is_noticed(chosen: tuple[int, ...], in_place: bool) -> None:
    model = draw(RefinedPrompt, in_place)
    twin = compiled(model, OPTIONS["ranges"], cut="branch")
    for step, expected, found in run(model, twin, chosen):
        if step % 2 == 0:
            assert torch.equal(found, expected), step
    assert pab_compile.stats(twin).reused["spatial"] == STEPS // 2


def test_what_is_kept_does_not_change_with_what_it_was_computed_from() -> None:
    made, watched = noise(3, 4), Watched()
    equal, values = made.clone(), made * 1
    assert watched.values([made]) is None
    watched.keep([made], [made.view(12), values])
    made.data.zero_()  # no version tells of it
    kept = watched.values([equal])
    assert kept is not None
    assert torch.equal(kept[0], equal.view(12)) and kept[1] is values
    assert watched.num_bytes() == 3 * 48
    assert watched.values([made]) is None
    assert watched.num_bytes() == 0


def test_tensors_that_differ_at_the_second_call_are_not_kept_any_more() -> None:
    watched = Watched()
    for seed in range(3):
        made = noise(3, seed=seed)
        assert watched.values([made]) is None
        watched.keep([made], [made * 1])
    assert watched.num_bytes() == 0


def test_python_may_write_to_tokens_that_are_kept() -> None:
    model = draw(Returned)
    twin = compiled(model, OPTIONS["ranges"], cut="branch")
    for step, expected, found in run(model, twin, (0,) * STEPS):
        if step % 2 == 0:
            assert torch.equal(found, expected), step


class Returned(RefinedPrompt):
    """Python writes to the refined prompt behind the graph that refines it."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep))
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        text = self.text(prompt) + self.table()
        text = text + self.refine(text)
        x = self.block(x, emb, text, frames)
        self.change(text)
        x = x + F.silu(text).mean(1, keepdim=True)
        return self.last(x).view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)

    @torch.compiler.disable
    def change(self, text: torch.Tensor) -> None:
        """Write to tokens."""
        text.data.mul_(0.5)
