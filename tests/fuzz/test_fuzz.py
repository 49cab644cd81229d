"""Random generations: nothing foreign is reused, and little that could be reused is computed."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch

import pab_compile

from .model import drawn
from .session import OPTIONS, Session, WrongReuse

SESSIONS = 5
PER_SESSION = 10
# Not taken are: all of timesteps that follow no schedule, some of the first step, and some of
# videos that run at once. ``python -m fuzz 10000`` prints how many of which.
MOST_MISSED = 0.55

pytestmark = pytest.mark.compiled_once


@pytest.fixture(scope="module")
def compiled() -> Any:
    before = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = 64
    yield torch.compile(drawn(), backend="pab", options=OPTIONS, dynamic=False)
    torch._dynamo.config.recompile_limit = before


def run(compiled: Any, seeds: range, **session: Any) -> tuple[int, int]:
    """Run sessions: how many reuses were possible, and how many were not taken."""
    possible, missed = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for seed in seeds:
        pab_compile.reset()
        drawn_session = Session(compiled._orig_mod, compiled, seed, **session)
        drawn_session.run(PER_SESSION)
        possible += drawn_session.possible
        missed += drawn_session.missed
    return possible.total(), missed.total()


def test_random_generations_reuse_nothing_foreign_and_miss_little(compiled: Any) -> None:
    possible, missed = run(compiled, range(SESSIONS))
    assert possible > 150
    assert missed < MOST_MISSED * possible


@pytest.mark.long
def test_two_threads_do_not_mix(compiled: Any) -> None:
    failures: list[BaseException] = []
    done: list[tuple[int, int]] = []

    def work(seeds: range) -> None:
        try:
            done.append(run(compiled, seeds, writes=False))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(range(n, n + 2),)) for n in (1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert len(done) == 2


# The oracle finds what is wrong.


@pytest.mark.parametrize("calls_ago", [1, 20])
def test_outputs_of_another_lane_or_video_are_found_out(calls_ago: int) -> None:
    model = drawn()
    given: list[tuple[torch.Tensor, ...]] = []

    def mixed(latents: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        given.append((latents, *others))
        timestep, prompt = others
        before = given[-1 - calls_ago :][0]
        return latents + model.own(latents, timestep) + model.other(before[0], before[1], prompt)

    with pytest.raises(WrongReuse, match="foreign"):
        Session(model, mixed, seed=1).run(PER_SESSION)


def test_the_parts_of_the_model_are_its_output() -> None:
    model = drawn()
    latents, prompt = torch.randn(2, 6, 8), torch.randn(2, 3, 8)
    timestep = torch.tensor([500.0, 500.0])
    parts = model.own(latents, timestep), model.other(latents, timestep, prompt)
    torch.testing.assert_close(model(latents, timestep, prompt), latents + parts[0] + parts[1])
