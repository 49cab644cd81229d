"""A service: requests of many sizes, some cancelled, some that start from a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same
from pab_compile.dynamo import compilation_of
from pab_compile.runtime.last_runs import last_runs

from .case import Case, noise
from .catalogue import CASES
from .observe import OPTIONS, RANGES, WINDOW
from .oracle import Oracle, Rule

pytestmark = pytest.mark.compiled_once
TEXT_TO_IMAGE = CASES["Flux"]
STEPS = 8


def image_to_image(text_to_image: Any) -> Any:
    """The pipeline that starts from a picture, with the same transformer."""
    parts = text_to_image.components
    parts = {**parts, "image_encoder": None, "feature_extractor": None}
    pipe = diffusers.FluxImg2ImgPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Service:
    """One transformer and both pipelines."""

    def __init__(self, case: Case, compiled: bool) -> None:
        self.case = case
        self.draw = case.build()
        if compiled:
            self.draw.transformer = torch.compile(
                self.draw.transformer, backend="pab", options=OPTIONS
            )
        self.redraw = image_to_image(self.draw)

    def __call__(
        self,
        strength: float = 1.0,
        seed: int = 5,
        width: int = 96,
        stop: int | None = None,
        end_step: Callable[..., Any] = lambda *args: args[-1],
    ) -> torch.Tensor:
        """Latents of a request.

        Args:
            strength: how much of the schedule is run; below 1, from a picture.
            seed: of the noise.
            width: of the picture in pixels.
            stop: after how many steps the user cancels.
            end_step: what the pipeline calls after every step.
        """

        def end(pipe: Any, step: int, *args: Any) -> Any:
            pipe._interrupt = stop == step + 1
            return end_step(pipe, step, *args)

        request: dict[str, Any] = {"width": width, "callback_on_step_end": end}
        if strength == 1:
            return self.case.generate(self.draw, STEPS, seed, **request)
        request["latents"] = noise(1, 4 * width // 16, self.channels, seed=seed)
        picture = noise(1, 3, 64, width, seed=1).sigmoid()
        return self.case.generate(
            self.redraw, STEPS, seed, image=picture, strength=strength, **request
        )

    @property
    def channels(self) -> int:
        return self.draw.transformer.config.in_channels


def alone(**request: Any) -> torch.Tensor:
    """The same request by hooks, on a transformer that ran nothing else."""
    service = Service(TEXT_TO_IMAGE, compiled=False)
    first = STEPS - round(request.get("strength", 1.0) * STEPS)
    rule = Rule(RANGES, WINDOW, STEPS - first)
    oracle = Oracle(service.draw.transformer, TEXT_TO_IMAGE.dit, rule)
    return service(**request, end_step=oracle.end_step)


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(TEXT_TO_IMAGE, compiled=True)


@pytest.mark.sample("0.75-3")
@pytest.mark.parametrize("cancelled", [1, 2, 3])
@pytest.mark.parametrize("strength", [1.0, 0.75, 0.625])
def test_a_cancelled_request_leaves_nothing_to_the_next(
    service: Service, cancelled: int, strength: float
) -> None:
    service(seed=7, stop=cancelled)
    assert_same(service(strength=strength, seed=8), alone(strength=strength, seed=8))


def test_every_size_reuses_at_its_first_request(service: Service, runs_all: bool) -> None:
    widths = range(64, 384, 32) if runs_all else (96, 64)
    patterns = set()
    for turn in range(2):
        for width in widths:
            actual = service(width=width, seed=turn)
            stats = pab_compile.stats(service.draw.transformer)
            patterns.add(stats.patterns)
            assert stats.notes == ()
            if width in (64, 128) and (turn == 0 or runs_all):
                assert_same(actual, alone(width=width, seed=turn))
    assert len(patterns) == 1
    assert "-" in str(patterns)


@pytest.mark.long
def test_a_seed_gives_the_same_picture_first_and_later() -> None:
    service = Service(TEXT_TO_IMAGE, compiled=True)
    first = service(seed=3)
    service(seed=4, stop=5)
    service(strength=0.5, seed=6)
    assert torch.equal(service(seed=3), first)
    assert_different(first, Service(TEXT_TO_IMAGE, compiled=False)(seed=3))


def test_nothing_is_held_once_the_pipeline_returns(service: Service) -> None:
    for request in ({}, {"strength": 0.5}, {"stop": 3}):
        service(**request)
        model = service.draw.transformer
        found = last_runs.find(model, compilation_of(model))
        assert found is not None
        assert found.running.closed
        assert len(found.running.lanes) == 0
        assert pab_compile.stats(model).peak_cache_bytes > 0
