"""``tune``: a plan with fitted weights for a generation, found by running it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from pab_compile.dynamo import compilation_of
from pab_compile.errors import CalibrationError
from pab_compile.live.find import find_denoisers
from pab_compile.passes.sites.site import OUTPUT
from pab_compile.plans.step_plan import StepPlan

from .fit import Fit, Target
from .rehearsal import Generate, Rehearsal, Run
from .row import Row, lengths_of
from .score import Score, psnr
from .steps import choose_steps
from .tuned import CONVERGED, SAME, Alternative, Tuned

_MOST_PROMPTS = 8
_MORE = 4
_NO_AXES: Mapping[str, str] = {}


def tune(
    generate: Generate,
    prompts: Sequence[Any],
    *,
    model: Any,
    num_steps: int,
    computed: int | None = None,
    speedup: float | None = None,
    teacher: Literal["same", "converged"] = SAME,
    rounds: int = 1,
    steps: Sequence[int] | None = None,
    held_out: int | None = None,
    teacher_steps: int | None = None,
    axes: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Find which steps to compute, and the weights with which the others combine their outputs.

    The plan is fitted on some prompts, and measured on others that are held out. It is fitted by
    running the sampler with it, so it fits the sampler and the number of steps, whatever they are.
    ``full_generations`` of the result says what that took.

    Args:
        generate: ``generate(prompt, num_steps)`` runs one whole generation and returns its latents,
            or a picture as a tensor. It must do the same at every run of a prompt, so it seeds its
            noise.
        prompts: what ``generate`` takes, at least 3. Each must tell its noise too.
        model: the module that denoises, or the pipeline that has one. It may be compiled.
        num_steps: steps of a generation.
        computed: number of steps that compute. Give this or ``speedup``.
        speedup: number of steps / number of steps that compute, at least.
        teacher: what results should be near to. ``"same"`` is the same generation with every step
            computed. ``"converged"`` is a generation with many more steps.
        rounds: of the last fit, of all weights together. Each takes most of the model calls. 0
            leaves it out. Interrupt it (Ctrl-C) to keep what was found before.
        steps: the steps that compute, the first one is 0. None chooses them.
        held_out: number of prompts, the last ones, that the plan is measured on. None: a third of
            them, and what is left of the others above 8.
        teacher_steps: steps of a converged generation. None: four times ``num_steps``.
        axes: the option ``axes``.
        progress: show a progress bar. None shows it on a terminal.

    Returns:
        The plan, with its quality and that of fewer steps and of a line at the same steps.

    Raises:
        CalibrationError: the arguments do not fit, generations differ from run to run, or a result
            is not finite. The message says what was found.
    """
    count = _count(num_steps, computed, speedup, steps)
    if len(prompts) < 3:
        raise CalibrationError(
            f"tune needs at least 3 prompts, 2 for the fit and 1 to measure; got {len(prompts)}."
        )
    fitted = min(_MOST_PROMPTS, max(2, 2 * len(prompts) // 3))
    if held_out is not None:
        fitted = len(prompts) - held_out
    if not 2 <= fitted < len(prompts):
        raise CalibrationError(
            f"held_out={held_out} leaves {fitted} of {len(prompts)} prompts for the fit: it needs "
            "at least 2, and at least 1 to measure."
        )
    rehearsal = Rehearsal(generate, module_of(model, axes or {}), axes)
    with _bar(progress) as tell:
        seen = _Seen(rehearsal, num_steps, teacher, teacher_steps or _MORE * num_steps, tell)
        targets = [seen.target(prompt) for prompt in prompts[:fitted]]
        lengths = lengths_of(seen.timesteps)
        chosen = steps or choose_steps(seen.own, lengths, count)
        row = Row.of(lengths, chosen)
        fit = Fit(rehearsal, targets, num_steps, lambda: tell("fitting gap by gap"))
        line, row = row, fit.stage_by_stage(row)
        fit.advance = lambda: tell("fitting all weights together")
        try:
            row = fit.together(row, rounds)
        except KeyboardInterrupt:
            tell("interrupted: keeping the weights that were found")
        calls = rehearsal.num_computed
        alternatives = _measured(seen, prompts[fitted:], {"tuned": row, "line": line})
    plan = StepPlan(row.entries(), "The tuned plan", OUTPUT, tuple(seen.timesteps))
    return Tuned(
        plan,
        alternatives,
        teacher,
        fitted,
        len(prompts) - fitted,
        calls / (num_steps * seen.calls_per_step),
    )


class _Seen:
    """Runs that compute every step.

    Args:
        rehearsal: runs the generations.
        num_steps: of a generation.
        teacher: what results should be near to.
        teacher_steps: of a converged generation.
        tell: called after every generation.

    Attributes:
        timesteps: of a generation.
        own: the runs with every step computed.
        calls_per_step: model calls per step.
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
        self.own: list[Target] = []
        self.calls_per_step = 1.0

    def target(self, prompt: Any) -> Target:
        """What a generation should be: its latents at each step, and its result."""
        own = self.full(prompt)
        self.own.append(own)
        return own if self.teacher == SAME else self._converged(prompt, own)

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
        return Target(prompt, run.latents, _finite(run, prompt))

    def reference(self, prompt: Any, name: str, own: Target) -> torch.Tensor:
        """A result to compare with."""
        return own.result if name == SAME else self._converged(prompt, own).result

    def fewer(self, prompt: Any, num_steps: int) -> torch.Tensor:
        """The result with fewer steps."""
        return _finite(self._run(prompt, num_steps), prompt)

    def _converged(self, prompt: Any, own: Target) -> Target:
        """The generation with many more steps; its latents at the timesteps of the steps."""
        run = self._run(prompt, self.teacher_steps)
        latents = [_at(run, timestep) for timestep in self.timesteps]
        return Target(prompt, latents, _finite(run, prompt))

    def _run(self, prompt: Any, num_steps: int) -> Run:
        run = self.rehearsal.run(prompt, num_steps)
        self.tell("computing every step")
        return run


def _measured(
    seen: _Seen, prompts: Sequence[Any], rows: Mapping[str, Row]
) -> tuple[Alternative, ...]:
    """The alternatives on prompts that were held out."""
    count, total = len(rows["tuned"].computed), seen.num_steps
    names = [SAME] if seen.teacher == SAME else [SAME, CONVERGED]
    found: dict[str, dict[str, list[float]]] = {}
    for prompt in prompts:
        own = seen.full(prompt)
        results = {
            "this plan": _rerun(seen, prompt, rows["tuned"]),
            f"{count} of {total} steps": seen.fewer(prompt, count),
            "a line at the same steps": _rerun(seen, prompt, rows["line"]),
        }
        for name in names:
            reference = seen.reference(prompt, name, own)
            for label, result in results.items():
                values = found.setdefault(label, {}).setdefault(name, [])
                values.append(psnr(result, reference))
    ours = next(iter(found.values()))
    return tuple(
        Alternative(
            label,
            {name: Score.of(values) for name, values in scores.items()},
            {
                name: Score.of([a - b for a, b in zip(values, ours[name], strict=True)])
                for name, values in scores.items()
            },
        )
        for label, scores in found.items()
    )


def _rerun(seen: _Seen, prompt: Any, row: Row) -> torch.Tensor:
    run = seen.rehearsal.run(prompt, seen.num_steps, row.entries())
    seen.tell("measuring")
    return _finite(run, prompt)


def _count(
    num_steps: int, computed: int | None, speedup: float | None, steps: Sequence[int] | None
) -> int:
    """The number of steps that compute."""
    if num_steps < 2:
        raise CalibrationError(f"num_steps={num_steps!r}: a plan needs at least 2 steps.")
    if steps is not None:
        if computed is not None or speedup is not None:
            raise CalibrationError("steps says what computes: leave computed and speedup out.")
        is_rising = all(a < b for a, b in itertools.pairwise(steps))
        if not steps or steps[0] != 0 or not is_rising or steps[-1] >= num_steps:
            raise CalibrationError(
                f"steps={list(steps)}: they rise from 0, and are below num_steps={num_steps}."
            )
        return len(steps)
    if (computed is None) == (speedup is None):
        raise CalibrationError("Give either computed or speedup.")
    if speedup is not None:
        if not 1 <= speedup <= num_steps:
            raise CalibrationError(f"speedup={speedup!r} must be from 1 to num_steps={num_steps}.")
        computed = math.floor(num_steps / speedup)
    assert computed is not None
    if not 2 <= computed <= num_steps:
        raise CalibrationError(
            f"{computed} steps would compute. At least 2 must, and at most all {num_steps}."
        )
    return computed


def module_of(model: Any, axes: Mapping[str, str] = _NO_AXES) -> torch.nn.Module:
    """The module to tune.

    Raises:
        CalibrationError: a pipeline has several, or the module is compiled so that its calls cannot
            be replaced.
    """
    if not isinstance(model, torch.nn.Module):
        found = find_denoisers(model, axes)
        if len(found) > 1:
            raise CalibrationError(
                f"{type(model).__name__} has several modules that denoise: {', '.join(found)}. "
                "Pass one of them as model; the others then compute every step."
            )
        model = next(iter(found.values()))
    is_compiled_in_place = getattr(model, "_compiled_call_impl", None) is not None
    if is_compiled_in_place or compilation_of(model) is not None:
        raise CalibrationError(
            f"The {type(model).__name__} is compiled in place, or not with Inductor. Tune it "
            "before that, or disable the handle of pab_compile.enable. torch.compile(model) works."
        )
    return model


def _finite(run: Run, prompt: Any) -> torch.Tensor:
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


@contextmanager
def _bar(progress: bool | None) -> Iterator[Callable[[str], None]]:
    """Shows what is done, and how many generations were run."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), TextColumn("{task.completed:.0f} generations")
    is_shown = console.is_terminal if progress is None else progress
    with Progress(*columns, console=console, disable=not is_shown) as bar:
        task = bar.add_task("tuning", total=None)
        yield lambda text: bar.update(task, description=text, advance=1)
