"""Sessions: random videos one after another and at once, with what users do in between.

The oracle knows the video, lane, step, prompt and weights of every call. It computes the outputs of
both attentions at every step, and finds in the result of the compiled model which of them were
added. Wrong is everything but an output of this video and lane, with the prompt and weights of now,
that is not older than the plan allows.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import pab_compile

from .model import PROMPT_LENGTH, WIDTH, FuzzDiT
from .videos import LOOPS, Video, draw_video

RANGES = {"full": 2, "cross": 3}
OPTIONS = {"inner": "eager", "ranges": RANGES, "window": (0.0, 1.0)}
TOLERANCE = 1e-5


class WrongReuse(AssertionError):
    """A result was made of something foreign."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """What both attentions give at one step."""

    step: int
    own: torch.Tensor
    other: torch.Tensor


@dataclass(eq=False)
class Session:
    """Random videos of one model.

    Args:
        model: the model.
        compiled: the compiled model.
        seed: of everything that is drawn.
        writes: whether weights, buffers and prompts are written between steps.

    Attributes:
        videos: number of videos so far.
        possible: loop and clock -> attentions that could have been reused.
        missed: those of them that were computed.
    """

    model: FuzzDiT
    compiled: Callable[..., Any]
    seed: int
    writes: bool = True
    videos: int = 0
    possible: Counter[tuple[str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        generator = torch.Generator().manual_seed(self.seed)
        self._prompts = [
            torch.randn(1, PROMPT_LENGTH, WIDTH, generator=generator) for _ in range(3)
        ]
        self._tables = [self._table() for _ in range(3)]

    def run(self, count: int) -> None:
        """Run some videos.

        Raises:
            WrongReuse: a result was made of something foreign.
        """
        # In sight of the loops, and no schedules of theirs.
        seeds, sizes = range(1000, 1000 + count), [1000.0, 500.0, 250.0, 125.0]
        assert seeds
        assert sizes
        with torch.no_grad():
            while self.videos < count:
                kind = self._rng.random()
                if kind < 0.2:
                    self._at_once()
                elif kind < 0.3:
                    self._in_one_function()
                else:
                    self._alone()

    def ask(
        self,
        video: Video,
        lane: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """Call the compiled model, and check what its result is made of."""
        told = pab_compile.step(video.step, video.count(), lane)
        with told if video.loop == "stated" else nullcontext():
            actual = self.compiled(latents, timestep, prompt)
        here = Outputs(
            video.step,
            self.model.own(latents, timestep),
            self.model.other(latents, timestep, prompt),
        )
        known = video.history.setdefault(lane, [])
        known.append(here)
        sources = self._sources(actual - latents, known[-max(RANGES.values()) :])
        if sources is None:
            raise WrongReuse(
                f"seed {self.seed}, video {self.videos}, {video.loop}, {video.clock}, "
                f"{video.guidance}, lane {lane}, step {video.step}: foreign"
            )
        style = (video.loop, video.clock)
        for source, reach in zip(sources, RANGES.values(), strict=True):
            if video.step - source >= reach:
                raise WrongReuse(f"seed {self.seed}, video {self.videos}: too old")
            if video.step % reach and any(each.step == video.step - 1 for each in known):
                self.possible[style] += 1
                self.missed[style] += source == video.step
        return actual

    def _sources(self, added: torch.Tensor, known: list[Outputs]) -> tuple[int, int] | None:
        """The steps at which both attentions were computed; None for foreign ones."""
        for one, two in itertools.product(reversed(known), repeat=2):
            if (added - one.own - two.other).abs().max() < TOLERANCE:
                return one.step, two.step
        return None

    def _table(self) -> torch.Tensor:
        count = self._rng.randint(4, 9)
        even = torch.linspace(1000, 1000 / count, count) / 1000
        shift = self._rng.choice((1.0, 3.0))
        return 1000 * shift * even / (1 + (shift - 1) * even)

    def _draw(self) -> tuple[Video, Iterator[int]]:
        self.videos += 1
        video = draw_video(self._rng, self.ask, self._tables, self._prompts)
        return video, LOOPS[video.loop](video)

    def _alone(self) -> None:
        """One video, perhaps broken off, with perhaps something written in between."""
        with pab_compile.generation() if self._rng.random() < 0.1 else nullcontext():
            self._whole()

    def _whole(self) -> None:
        video, steps = self._draw()
        stop = self._rng.randint(1, video.count()) if self._rng.random() < 0.4 else 99
        for step in steps:
            if step + 1 >= stop:
                break
            self._meddle(video)

    def _in_one_function(self) -> None:
        """Videos of one prompt, whose loops over videos and over steps are in one function.

        Each may be left early, and the next may begin at the next timestep.
        """
        first, clones = draw_video(self._rng, self.ask, self._tables, self._prompts), []
        table, start = first.schedule
        for _ in range(self._rng.randint(2, 3)):
            noise = torch.randn(first.latents.shape)
            video = replace(
                first, loop="in one function", schedule=(table, start), latents=noise, history={}
            )
            clones.append(video)
            stop = self._rng.randint(1, video.count())
            for step, timestep in enumerate(table[start:]):
                video.step = step
                video.update(video.predict(video.clocked(timestep)))
                if step + 1 >= stop:
                    break
                self._meddle(video)
            start = start + stop if start + stop < len(table) - 1 else first.schedule[1]
        self.videos += len(clones)

    def _at_once(self) -> None:
        """Two or three videos in turns."""
        running = [self._draw()[1] for _ in range(self._rng.randint(2, 3))]
        while running:
            steps = self._rng.choice(running)
            for _ in range(self._rng.choice((1, 1, 1, 3))):
                if next(steps, None) is None:
                    running.remove(steps)
                    break
            if running and self._rng.random() < 0.03:
                running.remove(self._rng.choice(running))

    def _meddle(self, video: Video) -> None:
        """Write a weight, a buffer or a prompt now and then. What was computed before is void."""
        if not self.writes or self._rng.random() > 0.05:
            return
        unchanged: dict[str, list[Outputs]] = {}
        match self._rng.randrange(4):
            case 0:
                self.model.strength.fill_(self._rng.uniform(0.5, 1.5))
            case 1:
                self.model.to_out.weight.mul_(self._rng.uniform(0.8, 1.2))
            case 2:
                video.prompts[0].add_(0.1)
                unchanged = {k: v for k, v in video.history.items() if k == "uncond"}
            case 3:
                self.model.out.bias.data.add_(0.1)
                pab_compile.weights_changed()
        video.history = unchanged
