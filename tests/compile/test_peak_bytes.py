"""What a generation holds at most, and that nothing is held behind its last step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import (
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from pab_compile.report.draw import format_bytes
from pab_compile.runtime.last_runs import last_generation

NUM_STEPS = 6
ENTRY = 4096  # bytes of what a site caches
WHOLE = {"ranges": {"spatial": 2, "temporal": 3, "cross": 2, "mlp": 2}, "window": (0.0, 1.0)}
FIRST, LAST = "transformer_blocks.0.attn1", "temporal_transformer_blocks.0.ff"


def held(compiled: Any) -> int:
    lanes = last_generation(compiled, "Nothing is held").running.lanes
    return sum(lane.cache_bytes() + lane.prelude_bytes() for lane in lanes)


def test_the_peak_is_that_of_a_moment_within_a_step() -> None:
    def plan(site: Any, step: int, *_: Any) -> int | None:
        """The first site caches at step 1, at which the last one is used for the last time."""
        last_use = 2 if site.name == FIRST else 1 if site.name.startswith(LAST) else 0
        return 0 if step == last_use > 0 else None

    compiled: Any = compiled_pab(tiny_latte(depth=1), plan=plan)
    ends = []
    for _ in Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).steps():
        running = last_generation(compiled, "").running
        ends.append(sum(lane.cache_bytes() for lane in running.lanes))
    assert ends == [ENTRY, ENTRY, 0, 0, 0, 0]
    assert pab_compile.stats(compiled).peak_cache_bytes == 2 * ENTRY


@pytest.mark.sample("two calls-2")
@pytest.mark.parametrize(("guidance", "num_calls"), [("none", 1), ("two calls", 2)])
def test_explain_counts_all_calls_of_a_step(guidance: Any, num_calls: int) -> None:
    compiled: Any = compiled_pab(tiny_latte(depth=1), **WHOLE)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance).run()
    found = pab_compile.explain(compiled)
    assert found.num_calls == num_calls
    assert pab_compile.stats(compiled).peak_cache_bytes == num_calls * found.cache_bytes
    kept = format_bytes(2 * found.cache_bytes)
    together = f"The 2 calls of a step cache {kept} together."
    assert (together in str(found)) == (num_calls == 2)
    given = {"encoder_hidden_states": draw_prompt(), "timestep": torch.tensor([5])}
    before = pab_compile.explain(tiny_latte(depth=1), draw_latents(), options=WHOLE, **given)
    assert before.num_calls is None
    kept = format_bytes(before.cache_bytes)
    assert f"caches {kept} per call" in str(before).replace("\n  ", " ")


def table(_: int) -> Iterator[torch.Tensor]:
    scheduler = ddim_timesteps(NUM_STEPS)
    yield from scheduler


def computed(num_steps: int) -> Iterator[torch.Tensor]:
    """A custom loop that has no schedule in any variable."""
    for step in range(num_steps):
        yield torch.tensor([1 - step / num_steps])


def rising(num_steps: int) -> Iterator[torch.Tensor]:
    for step in range(num_steps):
        yield torch.tensor([step / num_steps])


def between_bounds(num_steps: int) -> Iterator[torch.Tensor]:
    """The usual loop of a flow: its last timestep is no step."""
    bounds = torch.linspace(1, 0, num_steps + 1).tolist()
    for here, _ in itertools.pairwise(bounds):
        yield torch.tensor([here])


@pytest.mark.sample("computed-2", "between_bounds-1")
@pytest.mark.parametrize("num_calls", [1, 2])
@pytest.mark.parametrize("timesteps", [table, computed, rising, between_bounds])
def test_nothing_is_held_behind_the_last_step(
    timesteps: Callable[[int], Iterator[torch.Tensor]], num_calls: int
) -> None:
    compiled: Any = compiled_pab(tiny_latte(depth=1), **WHOLE)
    prompts = [draw_prompt(), draw_prompt(3)][:num_calls]
    for seed in (1, 2):
        latents, during = draw_latents(seed), []
        for timestep in timesteps(NUM_STEPS):
            before = latents
            for prompt in prompts:
                with torch.no_grad():
                    output = compiled(
                        before,
                        timestep=timestep.expand(1),
                        encoder_hidden_states=prompt,
                        return_dict=False,
                    )[0]
                latents = latents + 0.1 * output
            during.append(held(compiled))
        assert during[-1] == 0, (seed, during)
        assert min(during[1:-1]) > 0
        assert any(pab_compile.stats(compiled).reused.values())


def test_steps_after_a_guessed_end_compute_what_was_freed_there() -> None:
    """The timesteps go on below 0: whoever takes an earlier step for the last is wrong."""
    model = tiny_latte(depth=1)
    compiled: Any = compiled_pab(model, **WHOLE)
    latents = draw_latents()
    for step in range(NUM_STEPS):
        given = {"timestep": torch.tensor([0.3 - step / 10]), "return_dict": False}
        given |= {"encoder_hidden_states": draw_prompt()}
        with torch.no_grad():
            actual, expected = compiled(latents, **given)[0], model(latents, **given)[0]
        assert step not in (3, 4) or torch.equal(actual, expected), step
        latents = latents + 0.1 * expected
