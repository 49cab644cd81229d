"""Weights without a fit: today's polynomials against Adams-Bashforth in sigma; a model of the demo.

    python -m benchmarks.untuned
    python -m benchmarks.untuned --quick      # few videos; writes no files

The presets ``linear2`` to ``linear5`` follow the line through the last two outputs, in the number
of the step. Adams-Bashforth integrates this line (or parabola) from the last computed step to the
next one, as if the steps between were one step of a solver of second (third) order. The step that
computes is taken as it is, so the steps that reuse make up for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pab_compile.plans.plan import Entry
from pab_compile.tuning.score import Score

from .examples import digits
from .frontier.solvers import levels_of
from .frontier.videos import REFERENCES, STEPS, Reuse, Videos
from .frontier.weights import adams, polynomial
from .results import RESULTS_DIR, versions

RANGES = (2, 3, 4, 5)
SHIFTS = (1.0, 3.0, 7.0)
WINDOW = 0.1


def preset_steps(range_: int) -> list[int]:
    """The steps that a preset ``linear*`` computes."""
    return [step for step in range(STEPS) if step < WINDOW * STEPS or step % range_ == 0]


def ways_of(range_: int, shift: float) -> dict[str, list[Entry]]:
    """Name -> entries."""
    computed, levels = preset_steps(range_), levels_of(STEPS, shift).tolist()
    steps = [float(step) for step in range(STEPS)]
    return {
        "line in steps (today)": polynomial(computed, steps, 1),
        "line in sigma": polynomial(computed, levels[:-1], 1),
        "Adams-Bashforth 2 in sigma": adams(computed, levels, 1),
        "parabola in sigma": polynomial(computed, levels[:-1], 2),
        "Adams-Bashforth 3 in sigma": adams(computed, levels, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=digits.FAMILIES, default=["joint", "latte"])
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--ranges", nargs="+", type=int, default=list(RANGES))
    parser.add_argument("--shifts", nargs="+", type=float, default=list(SHIFTS))
    parser.add_argument("--quick", action="store_true", help="8 videos, one preset; no files")
    args, console = parser.parse_args(), Console()
    if args.quick:
        args.models, args.held_out, args.ranges, args.shifts = ["joint"], 8, [3], [1.0]
    lines = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    total = len(args.models) * len(args.shifts) * len(args.ranges) * len(ways_of(2, 1.0))
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("references", total=total)
        for model in args.models:
            torch.compiler.reset()
            reuse: Reuse | None = None
            for shift in args.shifts:
                videos = Videos(model, args.held_out, solver_steps=(STEPS, shift))
                reuse = Reuse(videos.model, "branch")
                heads = " | ".join(f"to {name}, dB | minus today" for name in REFERENCES)
                lines += [f"### {model}, shift {shift:g}", "", f"| | {heads} |"]
                lines.append("|---|---:|---:|---:|---:|")
                for range_ in args.ranges:
                    today: dict[str, list[float]] = {}
                    for name, entries in ways_of(range_, shift).items():
                        bar.update(task, description=f"{model}, shift {shift:g}, {name}")
                        found = videos.score(
                            videos.sample(reuse.with_entries(entries), videos.seeds)
                        )
                        today = today or found
                        cells = [f"linear{range_}: {name}"]
                        for reference in REFERENCES:
                            values, old = found[reference], today[reference]
                            gain = Score.of([a - b for a, b in zip(values, old, strict=True)])
                            cells.append(str(Score.of(values)))
                            is_old = values is old
                            cells.append(
                                "-" if is_old else f"{gain.mean:+.1f} ± {gain.half_width:.1f}"
                            )
                        lines.append(f"| {' | '.join(cells)} |")
                        bar.advance(task)
                lines.append("")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not args.quick:
        write(RESULTS_DIR / "untuned.md", lines, args)


def write(path: Path, lines: Sequence[str], args: argparse.Namespace) -> None:
    """The tables with the command that prints them."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    command = (
        f"python -m benchmarks.untuned --models {' '.join(args.models)} --held-out {args.held_out} "
        f"--ranges {' '.join(map(str, args.ranges))} --shifts {' '.join(map(str, args.shifts))}"
    )
    head = ["# Weights without a fit", "", f"Printed by `{command}`. {used}.", ""]
    head += ["PSNR of held-out latents with 95 % intervals; differences video by video.", ""]
    path.write_text("\n".join([*head, *lines]).rstrip() + "\n")


if __name__ == "__main__":
    main()
