"""Videos: denoising loops as people write them, one generator per way to write it.

A loop yields after every step, so that a session can break it off, or run another one in between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .model import NUM_TOKENS, WIDTH

Ask = Callable[["Video", str, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(video, lane, latents, timestep, prompt) -> prediction; it also checks the prediction."""


@dataclass(eq=False)
class Video:
    """One generation: what is denoised, and how its loop is written.

    Attributes:
        ask: calls the model.
        loop: name of the loop.
        clock: how the timestep reaches the model.
        guidance: the calls per step.
        schedule: the scheduler's table, which several videos may share, and the first step in it.
            A tuple of both, so that only the loops show it in their variables.
        latents: the current ones.
        prompts: the conditional and the unconditional one.
        in_place: whether the sampler writes into the latents.
        step: the current step.
        history: lane -> what its attentions gave at every step.
    """

    ask: Ask
    loop: str
    clock: str
    guidance: str
    schedule: tuple[torch.Tensor, int]
    latents: torch.Tensor
    prompts: tuple[torch.Tensor, torch.Tensor]
    in_place: bool = False
    step: int = 0
    history: dict[str, list[Any]] = field(default_factory=dict)

    def count(self) -> int:
        """Number of timesteps."""
        table, start = self.schedule
        return len(table) - start

    def predict(self, timestep: torch.Tensor) -> torch.Tensor:
        """The calls of one step."""
        batch = len(self.latents)
        cond, uncond = self.prompts
        if self.guidance == "two calls":
            lanes = (("cond", cond), ("uncond", uncond))
            one, two = (
                self.ask(self, lane, self.latents, timestep.expand(batch), prompt)
                for lane, prompt in lanes
            )
            return two + 2 * (one - two)
        if self.guidance == "batched":
            both = torch.cat([self.latents, self.latents])
            prompts = torch.cat([cond, uncond])
            one, two = self.ask(self, "both", both, timestep.expand(2 * batch), prompts).chunk(2)
            return two + 2 * (one - two)
        if self.guidance == "windows":
            result = torch.zeros_like(self.latents)
            for start in range(0, self.latents.shape[1] - NUM_TOKENS + 1, NUM_TOKENS // 2):
                part = self.latents[:, start : start + NUM_TOKENS]
                seen = self.ask(self, f"window {start}", part, timestep.expand(batch), cond)
                result[:, start : start + NUM_TOKENS] += seen
            return result
        if self.guidance == "copies":  # as windows that wrap around
            parts = self.latents.clone(), self.latents.roll(1, 1)
            seen = [
                self.ask(self, f"copy {number}", part, timestep.expand(batch), cond)
                for number, part in enumerate(parts)
            ]
            return (seen[0] + seen[1].roll(-1, 1)) / 2
        if self.guidance == "picture":  # one prompt, with and without a picture
            with_picture = self.latents + 0.1
            one = self.ask(self, "with", with_picture, timestep.expand(batch), cond)
            two = self.ask(self, "without", self.latents.clone(), timestep.expand(batch), cond)
            return two + 2 * (one - two)
        return self.ask(self, "cond", self.latents, timestep.expand(batch), cond)

    def update(self, prediction: torch.Tensor) -> None:
        """The sampler's step."""
        change = 0.3 * torch.tanh(prediction)
        if self.in_place:
            self.latents.add_(change)
        else:
            self.latents = self.latents + change

    def clocked(self, timestep: torch.Tensor) -> torch.Tensor:
        """The timestep as the model gets it."""
        match self.clock:
            case "view":
                return timestep
            case "value":
                return timestep.clone()
            case "thousandth":
                return timestep / 1000
            case "bfloat16":
                return timestep.to(torch.bfloat16)
            case "rising":
                return 1 - timestep / 1000
            case "number":
                return torch.tensor(float(timestep))
            case _:
                raise AssertionError(self.clock)


def in_line(video: Video) -> Iterator[int]:
    """The loop calls the model itself; the schedule is a variable."""
    table, start = video.schedule
    timesteps = table[start:]
    for step, timestep in enumerate(timesteps):
        video.step = step
        video.update(video.predict(video.clocked(timestep)))
        yield step


def by_helper(video: Video) -> Iterator[int]:
    """A function makes one step; it gets the schedule too."""

    def one(step: int, timesteps: torch.Tensor) -> None:
        video.step = step
        prediction = video.predict(video.clocked(timesteps[step]))
        video.update(prediction)

    table, start = video.schedule
    timesteps = table[start:]
    for step in range(len(timesteps)):
        one(step, timesteps)
        yield step


def by_method(video: Video) -> Iterator[int]:
    """A method makes one step; the schedule is an attribute of an attribute."""

    class Pipeline:
        def __init__(self) -> None:
            self.scheduler = SimpleNamespace(timesteps=video.schedule[0])

        def one(self, timestep: torch.Tensor) -> None:
            video.update(video.predict(video.clocked(timestep)))

    pipeline = Pipeline()
    for step in range(video.count()):
        video.step = step
        pipeline.one(pipeline.scheduler.timesteps[video.schedule[1] + step])
        yield step


def over_list(video: Video) -> Iterator[int]:
    """The schedule is a list of numbers, or an array."""
    numbers = video.schedule[0].tolist()[video.schedule[1] :]
    array = np.asarray(numbers)
    for step, number in enumerate(array if len(numbers) % 2 else numbers):
        video.step = step
        video.update(video.predict(video.clocked(torch.tensor(float(number)))))
        yield step


def over_tensors(video: Video) -> Iterator[int]:
    """The schedule is a list of tensors, one element per row of the batch."""
    batch = len(video.latents)
    values = video.schedule[0].tolist()[video.schedule[1] :]
    schedule = [torch.tensor([value] * batch) for value in values]
    for step, timestep in enumerate(schedule):
        video.step = step
        video.update(video.predict(video.clocked(timestep[:1])))
        yield step


def by_formula(video: Video) -> Iterator[int]:
    """No schedule is anywhere: every timestep is computed, evenly spaced."""
    count = video.count()
    for step in range(count):
        video.step = step
        video.update(video.predict(video.clocked(torch.tensor(1000 * (1 - step / count)))))
        yield step


def by_curve(video: Video) -> Iterator[int]:
    """No schedule is anywhere: every timestep is computed, in uneven steps."""
    count = video.count()
    for step in range(count):
        video.step = step
        left = 1 - step / count
        shifted = torch.tensor(1000 * 3 * left / (1 + 2 * left))
        video.update(video.predict(video.clocked(shifted)))
        yield step


def every_second(video: Video) -> Iterator[int]:
    """The sampler takes every second timestep of its schedule."""
    table, start = video.schedule
    timesteps = table[start:]
    for step, timestep in enumerate(timesteps[::2]):
        video.step = step
        video.update(video.predict(video.clocked(timestep)))
        yield step


def stated(video: Video) -> Iterator[int]:
    """The user states the step, and the lane by name."""
    table, start = video.schedule
    timesteps = table[start:]
    for step, timestep in enumerate(timesteps):
        video.step = step
        video.update(video.predict(timestep.clone()))
        yield step


LOOPS = {
    loop.__name__: loop
    for loop in (
        in_line,
        by_helper,
        by_method,
        over_list,
        over_tensors,
        by_formula,
        by_curve,
        every_second,
        stated,
    )
}
CLOCKS = ("view", "value", "thousandth", "bfloat16", "rising", "number")
GUIDANCES = ("none", "two calls", "batched", "windows", "copies", "picture")


def draw_video(
    rng: random.Random,
    ask: Ask,
    tables: list[torch.Tensor],
    prompts: list[torch.Tensor],
) -> Video:
    """A random video.

    Args:
        rng: draws.
        ask: calls the model.
        tables: schedules that several videos share.
        prompts: prompts that several videos share.
    """
    table = rng.choice(tables)
    if rng.random() < 0.5:
        table = table.clone()
    start = rng.randrange(len(table) - 1) if rng.random() < 0.3 else 0
    guidance = rng.choice(GUIDANCES)
    seed = torch.Generator().manual_seed(rng.randrange(1 << 30))
    tokens = 2 * NUM_TOKENS if guidance == "windows" else NUM_TOKENS
    cond, uncond = rng.sample(prompts, 2)
    if rng.random() < 0.2:
        cond = cond.clone()
    return Video(
        ask,
        rng.choice(list(LOOPS)),
        rng.choice(CLOCKS),
        guidance,
        (table, start),
        torch.randn(1, tokens, WIDTH, generator=seed),
        (cond, uncond),
        in_place=rng.random() < 0.3,
    )
