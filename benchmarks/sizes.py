"""What another size costs: processor time of the first generation of every size in turn.

    python -m benchmarks.sizes                  # prints a table per model: of RUNS
    python -m benchmarks.sizes Wan --blocks 8   # of this model only, with so many blocks
    python -m benchmarks.sizes --write          # and writes benchmarks/results/sizes.md
    python -m benchmarks.sizes --steady         # only how fast pieces for all sizes are

The models are narrow, with random weights. Prompt lengths and aspect ratios come in turn. *stock*
is `torch.compile(model)` with the same inner compiler, and *pab* is `linear3`. Every first
generation is given in seconds of processor time of the whole process, on one thread. *again* is the
same generation a second time, so the difference is what the new size costs. *compiled* says how
many graphs were captured for this size. *Further sizes* are those for which neither Dynamo nor the
library traced anything.

*Steady* is what pieces for all sizes cost later: their processor time at the last size, divided by
that of pieces for this size alone (`dynamic=False`). Generations of both alternate. It is the
median of the ratios of neighbours, with the quartiles beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

import pab_compile
from pab_compile.compile import parts

from .families import FAMILIES, make

RESULTS = Path(__file__).parent / "results" / "sizes.md"
STEADY = RESULTS.with_name("steady_sizes.md")
STEPS = 8
RANGE, ROUNDS = 3, 40
# (words, height, width): a second length, a third, a second shape, and then any.
SIZES = ((7, 8, 8), (9, 8, 8), (11, 8, 8), (13, 10, 8), (12, 14, 10), (6, 12, 18), (8, 16, 10))
HEAD = [
    "| words, height, width | stock, s | again, s | pab, s | again, s | compiled |",
    "|---|---|---|---|---|---|",
]


NAMES = ("Wan", "Flux")
DEEP = 40  # blocks, of which the target speaks
RUNS = (("Wan", 40, "eager"), ("Flux", 40, "eager"), ("Wan", 4, "inductor"))
HEAD_DIM = 16


def step_seconds(model: Any, inputs: dict[str, torch.Tensor]) -> list[float]:
    """Processor time of every step of a generation."""
    (name, latents), *_ = inputs.items()
    spent = []
    with torch.no_grad():
        for timestep in torch.linspace(1.0, 0.1, STEPS):
            start = time.process_time()
            given = {**inputs, name: latents, "timestep": timestep[None]}
            latents = latents - model(**given, return_dict=False)[0] / STEPS
            spent.append(time.process_time() - start)
    return spent


def seconds(model: Any, inputs: dict[str, torch.Tensor]) -> float:
    """Processor time of a generation."""
    return sum(step_seconds(model, inputs))


def steady(opened: Any, alone: Any, inputs: dict[str, torch.Tensor], console: Console) -> list[str]:
    """The lines that compare pieces for all sizes with those for one."""
    for model in (opened, alone):
        seconds(model, inputs)
    pairs = []
    for turn in track(range(ROUNDS), description="steady", console=console):
        order = (opened, alone) if turn % 2 else (alone, opened)
        taken = [step_seconds(model, inputs) for model in order]
        pairs.append(taken if turn % 2 else taken[::-1])
    computing = [step % RANGE == 0 for step in range(STEPS)]
    lines = ["| steady: all sizes / one size | median | quartiles |", "|---|---|---|"]
    for words, counted in (
        ("a generation", [True] * STEPS),
        ("steps that compute", computing),
        ("steps that reuse", [not computes for computes in computing]),
    ):
        ratios = [
            sum(s for s, is_counted in zip(one, counted, strict=True) if is_counted)
            / sum(s for s, is_counted in zip(two, counted, strict=True) if is_counted)
            for one, two in pairs
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        lines.append(f"| {words} | {middle:.3f} | {low:.3f} to {high:.3f} |")
        console.print(lines[-1], highlight=False)
    return lines


def table(name: str, blocks: int, inner: str, console: Console) -> list[str]:
    """The lines of one model."""
    family, captured = FAMILIES[name], _counted_captures()
    torch.compiler.reset()
    model = make(family, blocks, HEAD_DIM)
    options: dict[str, Any] = {"inner": inner, "ranges": f"linear{RANGE}"}
    pab = torch.compile(model, backend="pab", options=options)
    stock = torch.compile(model, backend=inner)
    lines = []
    costs: list[float] = []
    ratios: list[float] = []
    for size in track(SIZES, description=name, console=console):
        inputs = family.inputs(*size)
        first, again = (seconds(stock, inputs) for _ in range(2))
        captured.clear()
        ours, ours_again = (seconds(pab, inputs) for _ in range(2))
        times = f"{first:.2f} | {again:.2f} | {ours:.2f} | {ours_again:.2f}"
        lines.append(f"| {', '.join(map(str, size))} | {times} | {len(captured)} |")
        console.print(lines[-1], highlight=False)
        if not captured:
            costs.append(ours - ours_again)
            ratios.append(ours / first)
    lines += ["", "| further sizes | most | median | target |", "|---|---|---|---|"]
    for words, found, target in (
        ("what a size costs, s", costs, "at most 1"),
        ("first generation, pab / stock", ratios, "at most 2" if blocks >= DEEP else ""),
    ):
        lines.append(f"| {words} | {max(found):.2f} | {statistics.median(found):.2f} | {target} |")
        console.print(lines[-1], highlight=False)
    if inner != "inductor":
        return lines
    alone = torch.compile(model, backend="pab", options=dict(options), dynamic=False)
    return [*lines, "", *steady(pab, alone, family.inputs(*SIZES[-1]), console)]


def only_steady(name: str, blocks: int, inner: str, console: Console) -> list[str]:
    """The lines of one model that compare pieces for all sizes with those for one."""
    examples = [FAMILIES[name].inputs(*size) for size in (SIZES[0], SIZES[-1])]
    torch.compiler.reset()
    model = make(FAMILIES[name], blocks, HEAD_DIM)
    options: dict[str, Any] = {"inner": inner, "ranges": f"linear{RANGE}"}
    opened, alone = (
        torch.compile(model, backend="pab", options=dict(options), dynamic=dynamic)
        for dynamic in (None, False)
    )
    more = {"timestep": torch.ones(1), "return_dict": False}
    with torch.no_grad():
        pab_compile.precompile(opened, [{**each, **more} for each in examples])
    return steady(opened, alone, examples[-1], console)


def _counted_captures() -> list[None]:
    """A list that gets an element whenever a graph is captured."""
    found: list[None] = []
    capture = parts.capture

    def counting(*args: Any) -> Any:
        found.append(None)
        return capture(*args)

    parts.capture = counting
    return found


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all unless given")
    parser.add_argument("--blocks", type=int, help="number of blocks; 40 unless given")
    parser.add_argument("--inner", help="the inner compiler: inductor, unless given, or eager")
    parser.add_argument("--steady", action="store_true", help="only the speed afterwards")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args(given)
    console = Console()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.config.recompile_limit = 64
    lines: list[str] = []
    own = args.names or args.blocks or args.inner or args.steady
    blocks, inner = args.blocks or 40, args.inner or "inductor"
    runs = [(name, blocks, inner) for name in args.names or NAMES] if own else RUNS
    for name, blocks, inner in runs:
        lines += [f"## {name}, {blocks} blocks, {inner}", ""]
        if args.steady:
            lines += [*only_steady(name, blocks, inner, console), ""]
            if args.write:
                text = "# Pieces for all sizes, beside pieces for one\n\n"
                command = "`python -m benchmarks.sizes --steady --write` prints this.\n\n"
                STEADY.write_text(text + command + "\n".join(lines))
            continue
        lines += HEAD
        lines += [*table(name, blocks, inner, console), ""]
        if args.write:  # after every model: a run that is broken off leaves what it found
            RESULTS.write_text(f"# Another size\n\n{__doc__}\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
