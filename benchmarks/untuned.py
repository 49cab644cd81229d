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
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pab_compile.plans.plan import Entry
from pab_compile.tuning.score import Score

from .examples import digits
from .frontier.solvers import levels_of
from .frontier.table import signed
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


def tables(args: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[str]:
    """One table per model and schedule."""
    for model, shift in itertools.product(args.models, args.shifts):
        torch.compiler.reset()
        videos = Videos(model, args.held_out, solver_steps=(STEPS, shift))
        reuse = Reuse(videos.model, "branch")
        heads = " | ".join(f"to {name}, dB | minus today" for name in REFERENCES)
        yield from (f"### {model}, shift {shift:g}", "", f"| | {heads} |")
        yield "|---|---:|---:|---:|---:|"
        for range_ in args.ranges:
            found: dict[str, dict[str, list[float]]] = {}
            for name, entries in ways_of(range_, shift).items():
                videos_ = videos.sample(reuse.with_entries(entries), videos.seeds)
                found[name] = videos.score(videos_)
                advance(f"{model}, shift {shift:g}, linear{range_}: {name}")
            yield from lines_of(range_, found)
        yield ""


def lines_of(range_: int, found: dict[str, dict[str, list[float]]]) -> Iterator[str]:
    """The lines of one preset; the first way is today's."""
    today = next(iter(found.values()))
    for name, scores in found.items():
        cells = [f"linear{range_}: {name}"]
        for reference in REFERENCES:
            pairs = zip(scores[reference], today[reference], strict=True)
            gain = Score.of([new - old for new, old in pairs])
            cells.append(str(Score.of(scores[reference])))
            cells.append("-" if scores is today else signed(gain))
        yield f"| {' | '.join(cells)} |"


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
        for line in tables(args, lambda text: bar.update(task, description=text, advance=1)):
            lines.append(line)
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
