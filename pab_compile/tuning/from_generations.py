"""A plan with fitted weights for a generation, found by running it."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeElapsedColumn

from pab_compile.dynamo import compilation_of
from pab_compile.errors import CalibrationError
from pab_compile.live.find import find_denoisers
from pab_compile.passes.sites.site import OUTPUT
from pab_compile.plans.step_plan import StepPlan
from pab_compile.plans.tuned_model import TunedModel

from .compare import compare
from .full_runs import FullRuns
from .memory import memory_line
from .pairs import Pairing
from .rehearsal import Generate, Rehearsal
from .resume import Resume
from .tuned import SAME, Tuned
from .work import Work

_log = logging.getLogger(__name__)

_MOST_PROMPTS = 8
_MORE = 4
_QUIET = 30.0
"""Seconds between log lines, where no terminal shows progress."""
_NO_AXES: Mapping[str, str] = {}


def from_generations(
    generate: Generate,
    prompts: Sequence[Any],
    *,
    model: Any,
    num_steps: int,
    computed: int | None = None,
    speedup: float | None = None,
    teacher: Literal["same", "converged"] = SAME,
    rounds: int = 1,
    budget: float = 60,
    steps: Sequence[int] | None = None,
    half_steps: Sequence[int] = (),
    guidance: bool | None = None,
    held_out: int | None = None,
    teacher_steps: int | None = None,
    axes: Mapping[str, str] | None = None,
    resume: str | Path | None = None,
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
        computed: number of steps that compute. Give this or ``speedup``. With guidance left out,
            more steps compute at the same cost, and some of them compute one of two prompts only.
        speedup: number of steps / number of steps that compute, at least.
        teacher: what results should be near to. ``"same"`` is the same generation with every step
            computed. ``"converged"`` is a generation with many more steps.
        rounds: of the last fit, of all weights together. Each takes most of the model calls. 0
            leaves it out. Interrupt it (Ctrl-C) to keep what was found before.
        budget: full generations' worth of model calls that the fit may take. If it is too low, the
            derivatives of the last fit are of fewer prompts, of two at least, and it ends early.
        steps: the steps that compute, the first one is 0. None chooses them.
        half_steps: those of ``steps`` that compute one of two prompts only.
        guidance: whether steps may compute one of the two prompts of guidance only. None tries it
            where a step has two prompts, and keeps it if it is better on the prompts of the fit.
            True insists on it. False computes both at every computed step.
        held_out: number of prompts, the last ones, that the plan is measured on. None: a third of
            them, and what is left of the others above 8.
        teacher_steps: steps of a converged generation. None: four times ``num_steps``.
        axes: the option ``axes``.
        resume: a file for what was found so far. An interrupted run goes on from there when it is
            called again. Only the runs with every step computed are made again.
        progress: show a progress bar. None shows it on a terminal.

    Returns:
        The plan, with its quality and that of fewer steps and of a line at the same steps.

    Raises:
        CalibrationError: the arguments do not fit, generations differ from run to run, a result is
            not finite, guidance was asked for and a step has no two prompts, or the file to resume
            from is of another request. The message says what was found.
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
    if not set(half_steps) <= set(steps or ()) or (half_steps and guidance is False):
        raise CalibrationError(
            f"half_steps={list(half_steps)} are those of steps={list(steps or ())} that compute "
            f"one of two prompts, with guidance={guidance}."
        )
    if guidance and steps is not None and not half_steps:
        raise CalibrationError(
            "guidance=True and steps were given without half_steps: say which of the steps compute "
            "one of two prompts, or leave steps out."
        )
    if {0, num_steps - 1} & set(half_steps):
        raise CalibrationError(
            f"half_steps={list(half_steps)}: they are not the first or the last of the {num_steps} "
            "steps. The first one has no guidance difference before it."
        )
    module = module_of(model, axes or {})
    rehearsal = Rehearsal(generate, module, axes)
    with _bar(progress) as (tell, say):
        seen = FullRuns(rehearsal, num_steps, teacher, teacher_steps or _MORE * num_steps, tell)
        targets = [seen.target(prompt) for prompt in prompts[:fitted]]
        # Before the fit, so that nothing is lost if one of them cannot be used.
        computed_so_far = rehearsal.num_computed
        held = [(prompt, seen.references(prompt)) for prompt in prompts[fitted:]]
        rehearsal.num_computed = computed_so_far  # to measure is no part of the tuning
        say(memory_line(seen, targets, count, rounds))
        pairing, note = _pairing(rehearsal, guidance, bool(half_steps))
        request = {
            "num_steps": num_steps,
            "computed": count,
            "steps": None if steps is None else list(steps),
            "half_steps": sorted(half_steps),
            "guidance": guidance,
            "teacher": teacher,
            "timesteps": seen.timesteps,
        }
        sizes = [float(each.result.square().mean().sqrt()) for each in targets]
        work = Work(
            rehearsal, targets, seen, tell, Resume(resume, request, sizes), count, pairing, budget
        )
        found = work.find(steps, half_steps, guidance)
        if pairing is not None and found.pairing is None and steps is None:
            note = "Leaving guidance out at some steps was tried, and it was not better."
        row, line = work.refine(found, rounds)
        rows = {
            "this plan": (row, found.pairing),
            "a line at the same steps": (line, found.pairing),
        }
        if (whole := work.whole) is not None:
            rows["both prompts at every computed step"] = whole.row, None
        calls = rehearsal.num_computed + work.calls_before
        alternatives = compare(seen, held, rows)
    left_out = found.pairing.plan(row) if found.pairing is not None else None
    timesteps = tuple(seen.timesteps)
    plan = StepPlan(
        row.entries(),
        "The tuned plan",
        OUTPUT,
        timesteps,
        guidance=left_out,
        model=TunedModel.of(module),
    )
    return Tuned(
        plan,
        alternatives,
        teacher,
        fitted,
        len(prompts) - fitted,
        calls / (num_steps * seen.calls_per_step),
        note,
    )


def _pairing(
    rehearsal: Rehearsal, guidance: bool | None, is_needed: bool
) -> tuple[Pairing | None, str]:
    """How a step carries two prompts, if the plan may leave one of them out; and why it does not.

    Raises:
        CalibrationError: guidance was asked for, and a step has no two prompts.
    """
    if guidance is False:
        return None, ""
    pairing = rehearsal.pairs.pairing()
    if isinstance(pairing, Pairing):
        return pairing, ""
    if guidance or is_needed:
        raise CalibrationError(f"Guidance cannot be left out: {pairing}. Leave guidance=True out.")
    return None, f"Both prompts compute at every computed step: {pairing}."


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


@contextmanager
def _bar(
    progress: bool | None,
) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Shows what is done and how many generations were run; also says lines above the bar."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.completed:.0f} generations"),
        TimeElapsedColumn(),
    )
    is_shown = console.is_terminal if progress is None else progress
    with Bar(*columns, console=console, disable=not is_shown) as bar:
        task = bar.add_task("tuning", total=None)
        start, said = time.monotonic(), 0.0

        def say(line: str) -> None:
            _log.info("%s", line)
            if is_shown:
                bar.console.print(line, markup=False, highlight=False)

        def show(text: str) -> None:
            nonlocal said
            bar.update(task, description=text, advance=1)
            seconds = time.monotonic() - start
            if not is_shown and seconds >= said + _QUIET:
                said = seconds
                number = bar.tasks[0].completed
                _log.info("%s: %d generations in %.0f s", text, number, seconds)

        yield show, say
