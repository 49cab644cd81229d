"""Full runs: generations that compute every step, which the others are compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from pab_compile.errors import CalibrationError

from .fit import Target
from .rehearsal import Rehearsal, Run
from .tuned import SAME


class FullRuns:
    """Runs that compute every step.

    Args:
        rehearsal: runs the generations.
        num_steps: of a generation.
        teacher: what results should be near to.
        teacher_steps: of a converged generation.
        tell: called after every generation.

    Attributes:
        timesteps: of a generation.
        calls_per_step: model calls per step.
        output_bytes: of all that the model returns at one step.
    """

    def __init__(
        self,
        rehearsal: Rehearsal,
        num_steps: int,
        teacher: str,
        teacher_steps: int,
        tell: Callable[[str], None],
    ) -> None:
        self.rehearsal = rehearsal
        self.num_steps = num_steps
        self.teacher = teacher
        self.teacher_steps = teacher_steps
        self.tell = tell
        self.timesteps: list[float] = []
        self.calls_per_step = 1.0
        self.output_bytes = 0

    def target(self, prompt: Any) -> Target:
        """What a generation should be: its latents at each step, and its result."""
        if self.teacher == SAME:
            return self.full(prompt)
        if not self.timesteps:
            self.full(prompt)
        return self._converged(prompt)

    def full(self, prompt: Any) -> Target:
        """The generation with every step computed."""
        run = self._run(prompt, self.num_steps)
        if len(set(run.timesteps)) == self.num_steps < len(run.timesteps):
            raise CalibrationError(
                f"A generation went through its {self.num_steps} timesteps several times: it "
                f"has {len(run.timesteps)} steps. tune needs one pass, so let generate make one "
                "part of the video, with one call of its sampler."
            )
        if len(run.timesteps) != self.num_steps:
            raise CalibrationError(
                f"A generation of {self.num_steps} steps called the model at "
                f"{len(run.timesteps)} different successive timesteps. tune needs one per step."
            )
        self.timesteps = self.timesteps or run.timesteps
        if run.timesteps != self.timesteps:
            raise CalibrationError(
                f"The timesteps of {prompt!r} differ from those of the first prompt. tune needs "
                "one schedule: tune prompts of one size at a time."
            )
        self.calls_per_step = run.num_computed / self.num_steps
        self.output_bytes = run.outputs.num_bytes() // self.num_steps
        return Target(prompt, run.latents, finite(run, prompt))

    def references(self, prompt: Any) -> dict[str, torch.Tensor]:
        """The results to compare with, by the name of the teacher."""
        found = {SAME: self.full(prompt).result}
        if self.teacher != SAME:
            found[self.teacher] = self._converged(prompt).result
        return found

    def fewer(self, prompt: Any, num_steps: int) -> torch.Tensor:
        """The result with fewer steps."""
        return finite(self._run(prompt, num_steps), prompt)

    def _converged(self, prompt: Any) -> Target:
        """The generation with many more steps; its latents at the timesteps of the steps."""
        run = self._run(prompt, self.teacher_steps)
        latents = [_at(run, timestep) for timestep in self.timesteps]
        return Target(prompt, latents, finite(run, prompt))

    def _run(self, prompt: Any, num_steps: int) -> Run:
        run = self.rehearsal.run(prompt, num_steps)
        self.tell("computing every step")
        return run


def finite(run: Run, prompt: Any) -> torch.Tensor:
    """The result of a generation, checked.

    Raises:
        CalibrationError: it is not finite.
    """
    assert run.result is not None
    if not bool(run.result.isfinite().all()):
        raise CalibrationError(
            f"The result for the prompt {prompt!r} is not finite. Leave the prompt out, or use "
            "another dtype."
        )
    return run.result


def _at(run: Run, timestep: float) -> torch.Tensor:
    """Latents at a timestep, on the line between the two nearest."""
    times, latents = run.timesteps, run.latents
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - timestep))
    if math.isclose(times[nearest], timestep, rel_tol=1e-4):
        return latents[nearest]
    is_past = (times[nearest] > timestep) == (times[0] > times[-1])
    other = min(max(nearest + (1 if is_past else -1), 0), len(times) - 1)
    if other == nearest:
        return latents[nearest]
    share = (timestep - times[nearest]) / (times[other] - times[nearest])
    return torch.lerp(latents[nearest].float(), latents[other].float(), share)
