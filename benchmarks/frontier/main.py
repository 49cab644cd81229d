"""What is best at equal cost: tuned plans, reuse as published, or fewer steps with any solver.

    python -m benchmarks frontier                              # all models
    python -m benchmarks frontier --models joint --computed 10
    python -m benchmarks frontier --models joint --only tuned  # replaces these rows of earlier runs
    python -m benchmarks frontier --quick                      # short, below; writes no files

The models are those of the examples (moving digits). Their own sampler is Euler with 30 steps and
guidance 2. Every row costs the same number of model calls. The PSNR is that of the latents of
held-out videos with noise of their own, against two references: the sampler's own 30 steps, and the
converged solution (the same noise, Adams-Bashforth 2 with 120 steps).

- *fewer steps*: no reuse, other solvers.
- *reuse as published*: every branch repeats at even gaps (PAB with all sites); the same with steps
  that are annealed in closed loop on other videos (residual reuse, as in BudCache); TaylorSeer of
  order 1 (also the presets ``linear*``) and 2.
- *tuned*: plans of ``pab_compile.tune``, fitted on other videos, to either reference. The converged
  solution that they are fitted to has 60 steps.

``--quick`` takes 7 calls only, 2 held-out videos and 3 others, and leaves out the last fit. So it
shows that everything runs, and little of quality.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pab_compile
from benchmarks.examples import digits
from benchmarks.results import RESULTS_DIR, versions
from pab_compile.tuning.score import psnr

from .plot import plot
from .solvers import SOLVERS
from .table import FEWER, OURS, PUBLISHED, SAME, Book, Row, lines_of
from .videos import REFERENCES, STEPS, TEACHER_STEPS, Reuse, Videos
from .weights import after_the_first, annealed, evenly, repeated, taylor

GROUPS = ("fewer", "published", "tuned")
BUDGET = 60
"""Full generations that the fit of a tuned plan may take."""
ANNEALED_ON = 4
"""Videos that the steps of residual reuse are annealed on."""


def fewer_rows(videos: Videos, computed: int) -> Iterator[Row]:
    """Fewer steps, with every solver."""
    for name, solver in SOLVERS.items():
        found = videos.solve(partial(_with_steps, solver, computed), videos.seeds)
        yield Row(FEWER, name, videos.score(found))


def _with_steps(solver, computed, velocity, noise):  # type: ignore[no-untyped-def]
    return solver(velocity, noise, computed)


def published_rows(videos: Videos, computed: int, moves: int) -> Iterator[Row]:
    """Reuse as others publish it."""
    torch.compiler.reset()
    reuse = Reuse(videos.model, "branch")
    later = after_the_first(computed, STEPS)
    seeds = range(ANNEALED_ON)
    goals = videos.sample(None, seeds)

    def error(steps: Sequence[int]) -> float:
        found = videos.sample(reuse.with_entries(repeated(steps, STEPS)), seeds)
        return -math.fsum(psnr(v, g) for v, g in zip(found, goals, strict=True)) / len(found)

    plans = {
        "PAB with all sites": repeated(evenly(computed, STEPS), STEPS),
        "TaylorSeer 1": taylor(later, STEPS, 1),
        "TaylorSeer 2": taylor(later, STEPS, 2),
        "residual, annealed steps": repeated(annealed(error, computed, STEPS, moves), STEPS),
    }
    for name, entries in plans.items():
        found = videos.sample(reuse.with_entries(entries), videos.seeds)
        note = f"{moves} moves, {ANNEALED_ON} other videos" if "annealed" in name else ""
        yield Row(PUBLISHED, name, videos.score(found), note)


def tuned_rows(
    videos: Videos, computed: int, prompts: int, rounds: int, budget: float
) -> Iterator[Row]:
    """Plans of ``tune``, run as users run them."""
    for teacher in ("same", "converged"):
        tuned = pab_compile.tune(
            videos.generate,
            range(prompts + 1),
            model=videos.model,
            num_steps=STEPS,
            computed=computed,
            teacher=teacher,
            teacher_steps=TEACHER_STEPS,
            rounds=rounds,
            budget=budget,
            held_out=1,
            progress=False,
        )
        torch.compiler.reset()
        options = {"plan": tuned, "inner": "eager"}
        model = torch.compile(videos.model, backend="pab", options=options)
        found = videos.sample(model, videos.seeds)
        note = f"{prompts} other videos, {tuned.full_generations:.0f} generations"
        if tuned.found.guidance is not None:
            note += f", {len(tuned.found.guidance.steps)} steps compute one of two prompts"
        yield Row(OURS, f"to {SAME if teacher == 'same' else teacher}", videos.score(found), note)


def measure(args: argparse.Namespace, book: Book, console: Console) -> None:
    """Fill the book, and write it after every table."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    sizes = {"fewer": len(SOLVERS), "published": 4, "tuned": 2}
    total = len(args.models) * len(args.computed) * sum(sizes[group] for group in args.only)
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("references", total=total)
        for model in args.models:
            videos = Videos(model, args.held_out)
            about = f"{args.held_out} held-out videos."
            for computed in args.computed:
                ways = {
                    "fewer": fewer_rows(videos, computed),
                    "published": published_rows(videos, computed, args.moves),
                    "tuned": tuned_rows(videos, computed, args.prompts, args.rounds, args.budget),
                }
                for group in args.only:
                    bar.update(task, description=f"{model}, {computed} of {STEPS}: {group}")
                    command = command_of(args, model, computed, group)
                    for row in ways[group]:
                        book.add(model, computed, about, replace(row, command=command))
                        scores = ", ".join(f"to {n} {row.score(n)} dB" for n in REFERENCES)
                        said = f"{model}, {computed} of {STEPS}, {row.label}: {scores}"
                        console.print(said, markup=False, highlight=False, soft_wrap=True)
                        bar.advance(task)
                write(book)


def command_of(args: argparse.Namespace, model: str, computed: int, group: str) -> str:
    """The command that prints these rows and no others."""
    what = f"--models {model} --computed {computed} --only {group} --held-out {args.held_out}"
    rounds = "" if args.rounds == 1 else f" --rounds {args.rounds}"
    budget = "" if args.budget == BUDGET else f" --budget {args.budget:g}"
    more = {
        "fewer": "",
        "published": f" --moves {args.moves}",
        "tuned": f" --prompts {args.prompts}{rounds}{budget}",
    }
    return f"python -m benchmarks frontier {what}{more[group]}"


def write(book: Book) -> None:
    """All tables and the picture."""
    if book.path is None:
        return
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = ["# Tuned plans, reuse as published, and fewer steps at equal cost", ""]
    head.append("Mean PSNR of the latents of held-out videos, with the half-width of its 95 %")
    head.append("interval. Differences are taken video by video. The best of each column is bold.")
    head += [
        "",
        "Printed by `python -m benchmarks frontier`, in parts. Each section names the commands",
    ]
    head.append(f"of its rows. The last part ran with {used}.")
    head += ["", "![The same as a plot](frontier.png)", ""]
    lines = [line for table in book.tables() for line in lines_of(*table)]
    (RESULTS_DIR / "frontier.md").write_text("\n".join([*head, *lines]).rstrip() + "\n")
    plot(book, RESULTS_DIR / "frontier.png")


def parse(given: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks frontier", description=(__doc__ or "").split("\n")[0]
    )
    models = list(digits.FAMILIES)
    parser.add_argument("--models", nargs="+", choices=models, default=["joint", "latte", "deep"])
    parser.add_argument("--computed", nargs="+", type=int, default=[15, 10, 7])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--held-out", type=int, default=32, help="videos that are measured")
    parser.add_argument("--prompts", type=int, default=8, help="videos to fit on")
    parser.add_argument("--moves", type=int, default=60, help="of annealed steps")
    parser.add_argument("--rounds", type=int, default=1, help="of the last fit of tuned plans")
    parser.add_argument("--budget", type=float, default=BUDGET, help="of tuned plans, generations")
    parser.add_argument("--quick", action="store_true", help="7 calls, 2 videos, no last fit")
    args = parser.parse_args(given)
    if args.quick:
        args.computed, args.held_out, args.prompts, args.moves, args.rounds = [7], 2, 3, 2, 0
    return args


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    args, console = parse(given), Console()
    book = Book.at(None if args.quick else RESULTS_DIR / "frontier.json")
    measure(args, book, console)
    for table in book.tables():
        for line in lines_of(*table):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
