"""Runs benchmarks: `python -m benchmarks [NAME ...] [--quick]`; `--help` lists the names.

`budget`, `comfyui`, `frontier` and `sizes` have options of their own, which
`python -m benchmarks NAME --help` lists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import (
    budget,
    cold_start,
    comfyui,
    compile_time,
    efficiency,
    explain_time,
    few_steps,
    generation,
    gpu,
    live,
    overhead,
    parallel,
    prediction,
    sizes,
    steady,
)
from .frontier import main as frontier
from .results import RESULTS_DIR, Result, footer, make_table, write

BENCHMARKS: dict[str, Callable[[Result, bool, Progress], None]] = {
    "compile": compile_time.run,
    "cold_start": cold_start.run,
    "steady": steady.run,
    "efficiency": efficiency.run,
    "explain_time": explain_time.run,
    "overhead": overhead.run,
    "generation": generation.run,
    "prediction": prediction.run,
    "few_steps": few_steps.run,
    "gpu": gpu.run,
    "live": live.run,
    "parallel": parallel.run,
}
"""Name -> function that fills a result; what each measures is in README.md."""
COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "budget": budget.main,
    "comfyui": comfyui.main,
    "frontier": frontier.main,
    "sizes": sizes.main,
}
"""Name -> a benchmark with options of its own."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = (*BENCHMARKS, "all")
    parser.add_argument("names", nargs="*", choices=choices, default="all", help="default: all")
    parser.add_argument("--quick", action="store_true", help="smallest sizes; writes no files")
    parser.add_argument("--json", type=Path, help="write here instead of benchmarks/results/")
    return parser.parse_args()


def main() -> None:
    if (own := COMMANDS.get("".join(sys.argv[1:2]))) is not None:
        own(sys.argv[2:])
        return
    args, console = parse_args(), Console()
    asked = [args.names] if isinstance(args.names, str) else args.names
    names = list(BENCHMARKS) if "all" in asked else asked
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30))
    tail = (MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, *tail, console=console, transient=True) as progress:
        for name in names:
            command = f"python -m benchmarks {name}{' --quick' if args.quick else ''}"
            result = Result(name, command, {}, file_name=name)
            if args.quick:
                result.notes.append("Smallest sizes: a check that it runs, not a measurement.")
            torch.compiler.reset()  # so that compilations of the last one do not count
            BENCHMARKS[name](result, args.quick, progress)
            results.append(result)
            console.print(make_table(result))
            for line in footer(result):
                console.print(line, markup=False, highlight=False)
            if not args.quick and not args.json:
                write([result], RESULTS_DIR / f"{result.file_name}.json")
    if args.json:
        write(results, args.json)


if __name__ == "__main__":
    main()
