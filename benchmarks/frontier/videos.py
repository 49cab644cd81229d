"""The videos of a benchmark: their model, noise and prompts, and what they should be.

The models are those of the examples. The sampler is Euler with 30 steps and guidance 2. The results
are the latents, which are the videos before they are cut to the range of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

import pab_compile
from benchmarks.examples import digits
from pab_compile.passes.sites.site import Site
from pab_compile.plans.plan import COMPUTE, Entry
from pab_compile.tuning.score import psnr

from .solvers import Velocity, adams_bashforth, euler

STEPS = 30
MORE_STEPS = 120
"""Of the converged solution, by Adams-Bashforth 2."""
TEACHER_STEPS = 60
"""Of the converged solution that plans are fitted to, by the same solver."""
GUIDANCE = 2.0
HELD_OUT_SEED = 10_000
BATCH = 8
REFERENCES = (f"{STEPS} steps", "converged")

Function = Callable[[Site, int, int | None, float | None], Entry | None]
Compiled = Callable[..., Any]


class Videos:
    """Held-out videos of a model.

    Args:
        name: of the model, one of ``digits.FAMILIES``.
        held_out: number of videos that are measured.
        guidance: scale of the guidance.
        shape: frames, height and width.
        shown: the digits that the prompts are.
    """

    def __init__(
        self,
        name: str,
        held_out: int,
        guidance: float = GUIDANCE,
        shape: tuple[int, int, int] = (digits.NUM_FRAMES, digits.SIZE, digits.SIZE),
        shown: Sequence[int] = range(digits.NUM_DIGITS),
        solver_steps: tuple[int, float] = (STEPS, 1.0),
    ) -> None:
        self.name, self.guidance, self.shape, self.shown = name, guidance, shape, shown
        self.num_steps, self.shift = solver_steps
        self.trained = digits.load(digits.find_folder(name))
        self.model = self.trained.model
        self.seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + held_out)

    def prompt_of(self, seed: int) -> int:
        """The digit of a seed."""
        return self.shown[seed % len(self.shown)]

    def noise_of(self, seed: int) -> torch.Tensor:
        """The noise of a seed."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, 1, *self.shape, generator=generator)

    def velocity(self, seeds: Sequence[int], model: Compiled | None = None) -> Velocity:
        """The velocity of some videos, with guidance in one call."""
        family, scale = self.trained.family, self.guidance
        call = self.model if model is None else model
        embedded = self.trained.embed(torch.tensor([self.prompt_of(seed) for seed in seeds]))

        def velocity(video: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            both = torch.cat([video, video])
            times = timestep.expand(len(both))
            free, prompted = family.velocity(call, both, times, embedded).chunk(2)
            return free + scale * (prompted - free)

        return velocity

    def solve(
        self, solver: Callable[[Velocity, torch.Tensor], torch.Tensor], seeds: Sequence[int]
    ) -> torch.Tensor:
        """Some videos by any solver, in batches."""
        return self._in_batches(lambda velocity, noise: solver(velocity, noise), seeds, None)

    def sample(self, model: Compiled | None, seeds: Sequence[int]) -> torch.Tensor:
        """Some videos by the sampler of the benchmark, with another callable as the model."""

        def own(velocity: Velocity, noise: torch.Tensor) -> torch.Tensor:
            pab_compile.reset()
            return euler(velocity, noise, self.num_steps, self.shift)

        return self._in_batches(own, seeds, model)

    def _in_batches(
        self,
        solver: Callable[[Velocity, torch.Tensor], torch.Tensor],
        seeds: Sequence[int],
        model: Compiled | None,
    ) -> torch.Tensor:
        results = []
        for start in range(0, len(seeds), BATCH):
            part = seeds[start : start + BATCH]
            noise = torch.cat([self.noise_of(seed) for seed in part])
            results.append(solver(self.velocity(part, model), noise))
        return torch.cat(results)

    def goals(self, seeds: Sequence[int]) -> dict[str, torch.Tensor]:
        """What videos should be: reference -> latents."""

        def converged(velocity: Velocity, noise: torch.Tensor) -> torch.Tensor:
            return adams_bashforth(velocity, noise, MORE_STEPS, self.shift)

        both = (self.sample(None, seeds), self.solve(converged, seeds))
        return dict(zip(REFERENCES, both, strict=True))

    @cached_property
    def held_out_goals(self) -> dict[str, torch.Tensor]:
        """What the held-out videos should be."""
        return self.goals(self.seeds)

    def score(self, videos: torch.Tensor) -> dict[str, list[float]]:
        """PSNR of the held-out videos against each reference, in dB."""
        return {
            name: [psnr(v, goal) for v, goal in zip(videos, goals, strict=True)]
            for name, goals in self.held_out_goals.items()
        }

    def generate(self, seed: int, num_steps: int) -> torch.Tensor:
        """One video for ``tune``. With more steps than usual it is the converged one."""
        solver = adams_bashforth if num_steps in (TEACHER_STEPS, MORE_STEPS) else euler
        with torch.no_grad():
            return solver(self.velocity([seed]), self.noise_of(seed), num_steps, self.shift)


class Reuse:
    """A model that reuses by entries that can be exchanged; the backend runs it.

    Args:
        model: the model.
        cut: the option ``cut``.
    """

    def __init__(self, model: torch.nn.Module, cut: str) -> None:
        self.function: Function = lambda *_: None
        options = {"plan": self._entry, "cut": cut, "inner": "eager"}
        torch.compiler.config.recompile_limit = 32
        self.call = torch.compile(model, backend="pab", options=options)

    def _entry(self, site: Site, step: int, count: int | None, time: float | None) -> Entry | None:
        return self.function(site, step, count, time)

    def with_entries(self, entries: Sequence[Entry]) -> Compiled:
        """The model, with the same entries for all sites."""
        self.function = lambda _, step, *__: None if entries[step] == COMPUTE else entries[step]
        return self.call

    def with_function(self, function: Function) -> Compiled:
        """The model, with a plan function."""
        self.function = function
        return self.call
