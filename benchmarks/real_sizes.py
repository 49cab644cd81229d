"""What a step that reuses computes and keeps, for models at the size that people run.

    python -m benchmarks.real_sizes                    # prints a row per model
    python -m benchmarks.real_sizes Latte-1 "FLUX.1"   # of these models only
    python -m benchmarks.real_sizes --write            # and writes benchmarks/results/real_sizes.md

The models are described only: no weights, no run. They are in bfloat16, with one prompt. `explain`
says what a step that reuses all sites of `linear3` computes, and what a plan keeps in memory.
Shares are of all operations of a call. The *ideal* is what eager computes outside of the blocks,
counted by torch's own `FlopCounterMode`. A step may compute less: what depends on the prompt alone
runs once per generation. A pipeline with guidance keeps the cache twice. With names, the other rows
of the file remain. `python -m benchmarks explain_time` measures the time of `explain`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from pab_compile import Explanation, PabError

from .blocks import Blocks
from .real_models import REAL_MODELS, RealModel

RESULTS = Path(__file__).parent / "results" / "real_sizes.md"
PLANS = ("linear3", "pab246")
HEAD = [
    "| model | size | PFLOP per call | linear3: a reuse step | ideal | linear3: cache, GiB "
    "| PAB246: cache, GiB |",
    "|---|---|---|---|---|---|---|",
]


def explained(real: RealModel, plan: str) -> Explanation:
    """What the compiler finds with a preset.

    Raises:
        PabError: the model is refused.
    """
    torch.compiler.reset()
    model, inputs = real.build(), real.inputs()
    return pab_compile.explain(model, options={"ranges": plan}, **inputs)


def row(real: RealModel) -> str:
    """A line of the table."""
    try:
        found = explained(real, PLANS[0])
    except (PabError, RuntimeError) as error:  # torch's own: a value is read, which there is not
        reason = str(error).splitlines()[0].split(". ")[0]
        return f"| {real.name} | {real.size} | - | not described: {reason} | - | - | - |"
    model = real.build()
    with FlopCounterMode(display=False) as counter:
        model(**real.inputs())
    ideal = 1 - Blocks(model).share(counter)
    as_published = explained(real, PLANS[1])
    cells = [
        f"{found.total_flops / 1e15:.3f}",
        f"{found.reuse_flops / found.total_flops:.2%}",
        f"{ideal:.2%}",
        f"{found.cache_bytes / 2**30:.2f}",
        f"{as_published.cache_bytes / 2**30:.2f}",
    ]
    return f"| {real.name} | {real.size} | {' | '.join(cells)} |"


def _rows_before() -> dict[str, str]:
    """The rows of the file by the name of the model."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line[:2] == "| "}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_sizes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all unless given")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    console = Console()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    known = _rows_before() if args.names else {}
    for name in track(args.names or list(REAL_MODELS), description="models", console=console):
        known[name] = row(REAL_MODELS[name])
        console.print(known[name], markup=False, highlight=False, soft_wrap=True)
        if args.write:  # after every row: a run that is broken off leaves what it found
            text = f"# At the size that people run\n\n{__doc__}\n"
            lines = (known[name] for name in REAL_MODELS if name in known)
            RESULTS.write_text(text + "\n".join([*HEAD, *lines]) + "\n")


if __name__ == "__main__":
    main()
