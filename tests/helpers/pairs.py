"""The same loop three times: of the compiled model, of an oracle of its own, and of eager."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import (
    Loop,
    ModelCall,
    Moment,
    assert_different,
    assert_same,
    calls_of,
    ddim_timesteps,
    draw_latents,
    relative_error,
)
from helpers.oracle import Oracle, Rule

NUM_STEPS = 12
# Reuse from step 2 on, so that a generation without a table needs nothing from its first step.
RULE = Rule({"spatial": 2, "temporal": 3, "cross": 4, "mlp": 3}, (100, 800))


@dataclass(frozen=True)
class Replay(Rule):
    """Reuse where another run did: a set of kinds per call, for one call per step."""

    reused: tuple[frozenset[str], ...] = ()

    def reuses(self, kind: str, step: int, moment: Moment) -> bool:
        """Whether the other run reused this kind at this step."""
        return kind in self.reused[step]


class Pair:
    """A loop of the compiled model, and the same loop of an oracle of its own and of eager."""

    def __init__(
        self, model: LatteTransformer3DModel, compiled: Callable[..., Any], **loop: Any
    ) -> None:
        loop.setdefault("timesteps", ddim_timesteps(NUM_STEPS))
        self._model = model
        self._reused: list[set[str]] = []
        self._latents = loop.setdefault("latents", draw_latents())
        self.actual = Loop(recorded(compiled, self._reused), **loop)
        self.oracle = Loop(Oracle(model, RULE), **loop)
        self.eager = Loop(calls_of(model), **loop)

    def check_nothing_foreign(self) -> None:
        """Steps reused inside the window only, and what they reused was this video's own.

        Sites may have computed where the rule reuses, and what is left of a video may have started
        the phase anew. An oracle that reuses exactly where the compiled model did must come to the
        same predictions.
        """
        rule = Replay(RULE.ranges, RULE.window, reused=tuple(map(frozenset, self._reused)))
        oracle = Oracle(self._model, rule)
        replayed = Loop(oracle, self.actual.timesteps, self._latents, self.actual.prompt).run()
        assert_same(torch.stack(self.actual.predictions), replayed)
        low, high = RULE.window
        inside = [low < timestep < high for timestep in self.actual.timesteps.tolist()]
        found = [step for step, kinds in enumerate(self._reused) if kinds]
        assert all(inside[step] for step in found), f"reused outside of the window: {found}"

    def check(self) -> None:
        """The predictions made so far are the oracle's, and eager's would not pass for them."""
        count = len(self.actual.predictions)
        expected = _first(self.oracle, count)
        assert_different(expected, _first(self.eager, count))
        assert_same(torch.stack(self.actual.predictions), expected)

    def check_computed(self) -> None:
        """The predictions made so far are eager's, and the oracle's would not pass for them."""
        count = len(self.actual.predictions)
        expected = _first(self.eager, count)
        assert_different(expected, _first(self.oracle, count))
        assert_same(torch.stack(self.actual.predictions), expected)

    def check_right(self) -> None:
        """The predictions made so far are all the oracle's or all eager's, never a mixture."""
        count = len(self.actual.predictions)
        actual = torch.stack(self.actual.predictions)
        errors = [relative_error(actual, _first(loop, count)) for loop in (self.oracle, self.eager)]
        assert min(errors) < 1e-5, f"neither the oracle nor eager: {errors}"

    def run(self) -> None:
        """Run to the end and compare."""
        self.actual.run()
        self.check()


def pairs_of(
    model: LatteTransformer3DModel, compiled: Callable[..., Any], number: int = 2, **loop: Any
) -> list[Pair]:
    """Videos that differ in their noise, with loops that are alike."""
    return [Pair(model, compiled, latents=draw_latents(i), **loop) for i in range(number)]


def advance(steps: Iterator[int], count: int) -> None:
    """Run some steps of a loop."""
    for _ in range(count):
        next(steps)


def _first(loop: Loop, count: int) -> torch.Tensor:
    if len(loop.predictions) < count:
        advance(loop.steps(), count)
    return torch.stack(loop.predictions[:count])


def recorded(compiled: Callable[..., Any], reused: list[set[str]]) -> ModelCall:
    """A compiled model that records the kinds that it reused in every call."""

    def call(*args: Any) -> torch.Tensor:
        result = calls_of(compiled)(*args)
        stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
        letters = zip(stats.kinds, stats.patterns[-1], strict=True)
        reused.append({kind for kind, letter in letters if letter == "-"})
        return result

    return call
