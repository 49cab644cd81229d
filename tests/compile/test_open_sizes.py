"""Sizes that Dynamo leaves open: one program serves all, and each is what it would be alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

import pab_compile
from helpers.latte import assert_same
from pab_compile.compile import parts
from pab_compile.live.enable import enable

WIDTH, STEPS = 16, 9
SIZES = ((4, 5, 7), (4, 5, 9), (6, 4, 11), (8, 6, 6), (12, 7, 3), (10, 4, 8))
LINEAR: dict[str, Any] = {"inner": "eager", "ranges": "linear3"}
PAB = {"inner": "eager", "ranges": {"spatial": 2, "cross": 3}, "window": (0, 9)}


class Attend(nn.Module):
    """Attention of one row of tokens to another."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        q = self.query(x).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = (y.unflatten(-1, (2, -1)).transpose(1, 2) for y in self.both(read).chunk(2, -1))
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Picture(nn.Module):
    """A DiT for pictures and prompts of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(4, WIDTH, (2, 1), (2, 1))
        self.time = nn.Linear(WIDTH, WIDTH)
        self.own, self.cross = Attend(), Attend()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.last = nn.Linear(WIDTH, 8)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        patches = self.patch(latents)
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = x + torch.arange(x.shape[1])[:, None].sin()
        gate = self.time(torch.outer(timestep, torch.arange(WIDTH)).cos())[:, None]
        x = self.prepared(x, prompt)
        x = x + gate * self.own(layer_norm(x, (WIDTH,)), layer_norm(x, (WIDTH,)))
        x = x + self.cross(x, prompt)
        x = x + gate * self.mlp(layer_norm(x, (WIDTH,)))
        tiles = self.last(x).unflatten(1, (rows, columns)).unflatten(-1, (4, 2))
        return tiles.permute(0, 3, 1, 4, 2).flatten(2, 3)

    def prepared(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """What enters the blocks."""
        return x


class Masked(Picture):
    """A mask has the prompt's length too, which Dynamo then passes twice."""

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, prompt: Any) -> torch.Tensor:
        words, mask = prompt
        words = words.reshape(1, words.shape[1], WIDTH) * mask.reshape(1, mask.shape[1], 1)
        return super().forward(latents, timestep, words)


class Spliced(Picture):
    """Six words, and those from the picture's height on: the whole prompt if that is 6."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        words = torch.cat([prompt[:, :6], prompt[:, latents.shape[2] :]], 1)
        return super().forward(latents, timestep, words)


class Broken(Picture):
    """Two breaks. The graphs between them know the picture's size only through earlier ones."""

    def prepared(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x + x.mean(1, keepdim=True)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        found = super().forward(latents, timestep, prompt)
        torch._dynamo.graph_break()
        return found * found.abs().amax((2, 3), keepdim=True).sigmoid()


class BrokenSpliced(Spliced):
    """The graph that splices the prompt is another one than that of the attention."""

    def prepared(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x


class Counted(Picture):
    """Python makes a tensor between two graphs, of the picture's size."""

    def prepared(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        return x + torch.tensor([float(n % 3) for n in ordinals(x.shape[1])])[:, None]


@torch._dynamo.disable
def ordinals(number: int) -> list[int]:
    """Something that Dynamo does not trace."""
    return list(range(number))


class Thirds(Picture):
    """The last third of the tokens is scaled: Dynamo does not know where it starts."""

    def prepared(self, x: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        first, second, third = x.tensor_split(3, 1)
        return torch.cat([first, second, 2 * third], 1)


def generate(model: Any, *size: Any) -> torch.Tensor:
    """A generation of given sizes."""
    *_, last = latents_of(model, *size)
    return last


def latents_of(
    model: Any, height: int, width: int, text: int, is_masked: bool = False
) -> Iterator[torch.Tensor]:
    """The latents after every step of a generation."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, height, width, generator=generator)
    prompt: Any = torch.randn(1, text, WIDTH, generator=generator)
    if is_masked:
        prompt = prompt, (torch.arange(text) < text - 2).float()[None]
    with torch.no_grad():
        for timestep in torch.linspace(9.0, 1.0, STEPS):
            latents = latents - model(latents, timestep[None], prompt) / STEPS
            yield latents


def said(model: Any) -> tuple[Any, ...]:
    """What is said of the last generation and of its graph, without times."""
    stats, found = pab_compile.stats(model), pab_compile.explain(model)
    of_sizes = found.cache_bytes, found.total_flops, found.reuse_flops, found.notes
    sites = [(site.name, site.cache_bytes, site.flops) for site in found.sites]
    ran = stats.patterns, stats.peak_cache_bytes, stats.notes, stats.computed_steps
    return *of_sizes, *sites, *ran


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of graphs that were captured."""
    count, capture = [0], parts.capture

    def counting(*args: Any) -> Any:
        count[0] += 1
        return capture(*args)

    monkeypatch.setattr(parts, "capture", counting)
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 64
    yield count
    torch._dynamo.config.recompile_limit = before


def check_sizes(
    model: nn.Module, sizes: Any, captures: list[int], options: dict[str, Any]
) -> list[int]:
    """Compare with programs of one size each; returns how many graphs each size captured."""
    compiled = torch.compile(model, backend="pab", options=options)
    alone = torch.compile(model, backend="pab", options=dict(options), dynamic=False)
    found = []
    for size in sizes:
        captures[0] = 0
        actual = generate(compiled, *size)
        found.append(captures[0])
        of_all = said(compiled)
        assert torch.equal(actual, generate(alone, *size)), size
        assert of_all == said(alone), size
    return found


@pytest.mark.sample("linear3")
@pytest.mark.parametrize("options", [LINEAR, PAB], ids=["linear3", "PAB"])
def test_further_sizes_are_not_captured(options: dict[str, Any], captures: list[int]) -> None:
    found = check_sizes(Picture(), SIZES, captures, options)
    assert found[:3] == [1, 1, 1]  # as often as Dynamo traces
    assert found[3:] == [0, 0, 0]


@pytest.mark.parametrize("options", [LINEAR, PAB], ids=["linear3", "PAB"])
def test_a_generation_goes_on_in_the_graph_of_all_sizes(
    options: dict[str, Any], captures: list[int]
) -> None:
    # Dynamo hands its size to the graph that other requests made last.
    first, *others = (4, 5, 7), (6, 4, 9), (8, 6, 6)
    compiled = torch.compile(Picture(), backend="pab", options=options)
    alone = torch.compile(Picture(), backend="pab", options=dict(options), dynamic=False)

    steps = latents_of(compiled, *first)
    for _ in range(STEPS // 2):
        next(steps)
    for size in others:
        generate(compiled, *size)
    *_, actual = steps
    assert captures == [2]
    assert torch.equal(actual, generate(alone, *first))


def test_a_size_that_is_passed_twice_is_one(captures: list[int]) -> None:
    sizes = [(4, 5, text, True) for text in (7, 9, 11, 8)]
    assert check_sizes(Masked(), sizes, captures, LINEAR) == [1, 1, 0, 0]


def test_with_nothing_reused_all_sizes_are_eager(captures: list[int]) -> None:
    model = Picture()
    compiled = torch.compile(model, backend="pab", options={"inner": "eager", "ranges": {}})
    for size in SIZES:
        assert torch.equal(generate(compiled, *size), generate(model, *size)), size
    assert captures == [3]


BROKEN_SIZES = ((4, 6, 7), (6, 6, 9), (12, 4, 8), (8, 6, 11))


@pytest.mark.sample("PAB")
@pytest.mark.parametrize("options", [LINEAR, PAB], ids=["linear3", "PAB"])
def test_further_sizes_of_several_graphs_are_not_captured(
    options: dict[str, Any], captures: list[int]
) -> None:
    # The last two pictures have equally many tokens: only the first graph tells them apart.
    found = check_sizes(Broken(), BROKEN_SIZES, captures, options)
    assert found == [4, 4, 4, 0], "each graph as often as Dynamo traces"


def test_what_was_decided_by_sizes_of_earlier_graphs_is_not_taken_over(
    captures: list[int],
) -> None:
    sizes = ((4, 5, 20), (6, 5, 20), (8, 5, 20))
    # At a height of six, the analysis takes the parts of the prompt for the prompt itself.
    assert check_sizes(BrokenSpliced(), sizes, captures, LINEAR)[2] > 0


@pytest.mark.long
def test_sizes_of_tensors_that_python_made_are_open_too(captures: list[int]) -> None:
    assert check_sizes(Counted(), BROKEN_SIZES, captures, LINEAR)[3:] == [0]


def test_a_generation_of_several_graphs_goes_on_in_those_of_all_sizes(captures: list[int]) -> None:
    first, *others = BROKEN_SIZES[:3]
    compiled = torch.compile(Broken(), backend="pab", options=LINEAR)
    alone = torch.compile(Broken(), backend="pab", options=dict(LINEAR), dynamic=False)
    steps = latents_of(compiled, *first)
    for _ in range(STEPS // 2):
        next(steps)
    for size in others:
        generate(compiled, *size)
    *_, actual = steps
    of_all = said(compiled)
    assert torch.equal(actual, generate(alone, *first))
    assert of_all == said(alone)


@pytest.mark.long
def test_sizes_that_undo_a_decision_have_an_analysis_of_their_own(captures: list[int]) -> None:
    # At a height of six, the analysis takes the parts of the prompt for the prompt itself.
    sizes = ((4, 5, 20), (6, 5, 20), (8, 5, 20), (6, 5, 20), (10, 5, 20))
    assert check_sizes(Spliced(), sizes, captures, LINEAR) == [1, 1, 1, 0, 0]


@pytest.mark.long
def test_a_size_of_an_unknown_rule_is_compiled_alone(captures: list[int]) -> None:
    sizes = ((4, 5, 7), (4, 7, 7), (4, 9, 7), (4, 6, 7))
    assert check_sizes(Thirds(), sizes, captures, LINEAR) == [1, 1, 1, 1]


@pytest.mark.long
def test_sizes_that_are_open_from_the_first_call_are_right(captures: list[int]) -> None:
    compiled = torch.compile(Picture(), backend="pab", options=LINEAR, dynamic=True)
    alone = torch.compile(Picture(), backend="pab", options=dict(LINEAR), dynamic=False)
    for size in ((6, 5, 7), (10, 9, 11), (8, 6, 5), (12, 7, 3)):
        assert torch.equal(generate(compiled, *size), generate(alone, *size)), size
    assert captures == [1 + 4], "each size alone, and one for all of them"


def test_plans_can_be_exchanged_at_further_sizes(captures: list[int]) -> None:
    handle, alone = enable(live := Picture(), "off", inner="eager"), Picture()
    for size in SIZES[:3]:
        generate(live, *size)
    captures[0] = 0
    for level in ("fast", "quality"):
        handle.set(level)
        enable(other := Picture(), level=level, inner="eager")
        assert torch.equal(generate(live, *SIZES[3]), generate(other, *SIZES[3])), level
    with handle.disabled():
        assert torch.equal(generate(live, *SIZES[4]), generate(alone, *SIZES[4]))
    assert captures == [2], "only those of the other models"
    handle.disable()


@pytest.mark.long
def test_a_budget_counts_the_bytes_of_each_size(captures: list[int]) -> None:
    options = {**LINEAR, "coalesce": False, "cache_budget": 4000}
    assert check_sizes(Picture(), SIZES, captures, options)[3:] == [0, 0, 0]


@pytest.mark.long
@pytest.mark.slow
def test_pieces_of_inductor_serve_all_sizes(captures: list[int]) -> None:
    model = Picture()
    compiled = torch.compile(model, backend="pab", options={"ranges": "linear3"})
    alone = torch.compile(model, backend="pab", options=LINEAR, dynamic=False)
    for size in SIZES:
        assert_same(generate(compiled, *size), generate(alone, *size))
    assert captures == [3 + len(SIZES)]
    assert pab_compile.stats(compiled).num_pieces < 3 * len(SIZES)
