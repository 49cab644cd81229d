"""Requests whose steps run in turn, each in a scope of its own, are as if each were alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT
from pab_compile import PabError, RequestScope
from pab_compile.runtime import request_scope as module

pytestmark = pytest.mark.compiled_once
OPTIONS = {"inner": "eager", "ranges": {"spatial": 2, "cross": 3}, "window": (0.0, 1.0)}


@pytest.fixture(scope="module")
def compiled() -> Callable[..., torch.Tensor]:
    torch.manual_seed(0)
    model = SmallDiT(1).requires_grad_(False)
    return torch.compile(model, backend="pab", options=OPTIONS)


@dataclass
class Request:
    """A request of a server. Its own prompt is that of every second one too."""

    number: int
    steps: int = 0
    latents: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator().manual_seed(self.number)
        self.latents = torch.randn(2, 4, 3, 2, 5, generator=noise)
        self.prompt = torch.full((2, 7, 4), 0.1 * (self.number % 2))
        self.timesteps = torch.linspace(1, 0.1, 6 + self.number % 3)
        self.scope = RequestScope(self.timesteps)

    @property
    def is_over(self) -> bool:
        return self.steps == len(self.timesteps)

    def run_step(self, model: Any, scope: AbstractContextManager[Any] | None = None) -> None:
        """One step, as a server makes it."""
        with torch.no_grad(), self.scope if scope is None else scope:
            timestep = self.timesteps[self.steps].expand(2)
            self.latents = self.latents - 0.2 * model(self.latents, timestep, self.prompt)
        self.steps += 1


def alone(model: Any, number: int) -> torch.Tensor:
    request = Request(number)
    with pab_compile.generation(request.timesteps):
        while not request.is_over:
            request.run_step(model, nullcontext())
    assert sum(pab_compile.stats(model).reused.values()) > 0
    return request.latents


def in_turn(requests: list[Request]) -> Iterator[Request]:
    while left := [request for request in requests if not request.is_over]:
        yield from left


def test_eight_requests_in_turn_are_as_if_each_were_alone(compiled: Any) -> None:
    expected = [alone(compiled, number) for number in range(8)]
    requests = [Request(number) for number in range(8)]
    for request in in_turn(requests):
        request.run_step(compiled)
    stats = pab_compile.stats(compiled)
    assert stats.steps == max(len(request.timesteps) for request in requests)
    assert sum(stats.reused.values()) > 0
    for request, wanted in zip(requests, expected, strict=True):
        assert torch.equal(request.latents, wanted), request.number
        request.scope.close()


def test_the_steps_of_a_request_may_run_in_any_thread(compiled: Any) -> None:
    requests = [Request(number) for number in range(3)]
    with ThreadPoolExecutor(2) as threads:
        for request in in_turn(requests):
            threads.submit(request.run_step, compiled).result()
    for request in requests:
        assert torch.equal(request.latents, alone(compiled, request.number))


def test_a_request_that_is_cancelled_frees_its_cache(
    compiled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []

    class Watched(module.Scope):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, "Scope", Watched)
    request = Request(0)
    request.run_step(compiled)
    request.scope.close()
    request.scope.close()
    gc.collect()
    assert made[0]() is None
    with pytest.raises(PabError, match="was closed"):
        request.run_step(compiled)


def test_what_is_no_step_of_one_request_is_refused() -> None:
    scope = RequestScope()
    with scope:
        with pytest.raises(PabError, match="entered already"), scope:
            pass
        with pytest.raises(PabError, match="closed while it is entered"):
            scope.close()
    with pytest.raises(PabError, match="got no timesteps"):
        RequestScope([])
    with pytest.raises(ZeroDivisionError), scope:
        _ = 1 / 0
    with scope:  # an error inside leaves it
        pass
