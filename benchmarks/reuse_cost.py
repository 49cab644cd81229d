"""What a step that reuses still computes, for every DiT of `tests/dits`.

    python -m benchmarks.reuse_cost                    # prints a row per model
    python -m benchmarks.reuse_cost flux latte         # of these models only
    python -m benchmarks.reuse_cost --write            # and writes benchmarks/results/reuse_cost.md

Each model runs with `linear3`. torch's own `FlopCounterMode`, in the place of the inner compiler,
counts the operations of a step that reuses. Shares are of what eager computes. The *ideal* is what
the model computes outside of its blocks: the same counter, by module. A step may compute less,
since what depends on the prompt alone runs once per generation. What a step computes within the
blocks is counted op by op, as a share of what eager computes there. An op without a known module
counts as within them. The cache is that of all rows of the batch. Floating inputs have the type of
the model, and so has the timestep if the model computes with it as it is. Blocks are the entries of
lists of modules that hold an attention. With names, the other rows of the file remain.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from pab_compile import PabError
from tests.dits.build import Denoising, build, run
from tests.dits.catalogue import CATALOGUE
from tests.dits.in_types import TYPES, first_loop
from tests.dits.spec import Dit
from tests.dits.truth import attention_modules

from .blocks import Blocks, Counted
from .flex import counting_flex_attention

RESULTS = Path(__file__).parent / "results" / "reuse_cost.md"
DEPTHS = ("num_layers", "num_single_layers", "num_refiner_layers", "depth", "n_layers")
REUSES = 2  # a step of ten; with `linear3` the second and the third one reuse


@dataclass(frozen=True)
class Cost:
    """What a reuse step computes and keeps.

    Attributes:
        share: its operations, as a share of those of eager.
        ideal: the share of what is outside of the blocks.
        of_blocks: its operations in the blocks, as a share of those that eager computes there.
        mebibytes: most bytes in the cache, in MiB.
    """

    share: float
    ideal: float
    of_blocks: float
    mebibytes: float


def measure(dit: Dit, dtype: torch.dtype, cut: str | None) -> Cost:
    """Count the operations of one model.

    Raises:
        PabError: the model is refused.
    """
    torch.compiler.reset()
    pab_compile.reset()
    model = build(replace(dit, dtype=dtype))
    whole, loop = _eager(dit, model, dtype)
    blocks = Blocks(model, attention_modules(model, dit))
    counted = Counted(blocks, dit.graphs == 1)
    options: dict[str, Any] = {"inner": counted.inner, "ranges": "linear3", **dit.options}
    if cut is not None:
        options["cut"] = cut
    compiled = torch.compile(model, backend="pab", dynamic=False, options=options)
    with dit.switched():
        for step in range(REUSES + 1):  # one loop, as a sampler's: else the generation would end
            counted.reset()
            run(compiled, **loop.at(step))
    total, in_blocks = whole.get_total_flops(), blocks.share(whole)
    kept = pab_compile.stats(compiled).peak_cache_bytes / 2**20
    of_blocks = counted.in_blocks / (in_blocks * total)
    return Cost(counted.total / total, 1 - in_blocks, of_blocks, kept)


def _eager(
    dit: Dit, model: torch.nn.Module, dtype: torch.dtype
) -> tuple[FlopCounterMode, Denoising]:
    """What eager computes, and the inputs."""

    def count(loop: Denoising) -> FlopCounterMode:
        whole = FlopCounterMode(display=False)
        with torch.compiler.set_stance("force_eager"), counting_flex_attention(), whole:
            run(model, **loop.at(0))
        return whole

    loop, whole = first_loop(dit, model, dtype, 10, count)
    return whole, loop


def deeper(dit: Dit, depth: int) -> Dit | None:
    """The model with so many layers of each sort; None if its config does not name them so."""
    config = {name: depth if name in DEPTHS else value for name, value in dit.config.items()}
    return None if config == dict(dit.config) else replace(dit, config=config)


def row(dit: Dit, cut: str | None) -> str:
    """A line of the table."""
    cells = []
    for dtype in TYPES.values():
        if dit.dtype not in (dtype, torch.float32):  # its ops take one type only
            cells += [f"the model needs {dit.dtype}".replace("torch.", ""), "-", "-", "-"]
            continue
        try:
            found = measure(dit, dtype, cut)
        except (PabError, RuntimeError, TypeError, ValueError) as error:
            cells += [_why_not(error), "-", "-", "-"]
            continue
        shares = (found.share, found.ideal, found.of_blocks)
        cells += [*(f"{share:.1%}" for share in shares), f"{found.mebibytes:.3f}"]
    return f"| {dit.name} | {' | '.join(cells)} |"


def _why_not(error: Exception) -> str:
    return "refused" if isinstance(error, PabError) else type(error).__name__


def _rows_before() -> dict[str, str]:
    """The rows of the file by the name of the model."""
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines if line[:2] == "| "}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reuse_cost", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all unless given")
    parser.add_argument("--cut", help="another cut than that of the preset, such as output")
    parser.add_argument("--layers", type=int, help="another number of layers, where it is known")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    console = Console()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    head = [
        "| model | float32: a reuse step | ideal | of the blocks | cache, MiB "
        "| bfloat16: a reuse step | ideal | of the blocks | cache, MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    known = _rows_before() if args.names else {}
    for name in track(args.names or list(CATALOGUE), description="models", console=console):
        dit = CATALOGUE[name] if args.layers is None else deeper(CATALOGUE[name], args.layers)
        if dit is None:
            continue
        known[name] = row(dit, args.cut)
        console.print(known[name], markup=False, highlight=False, soft_wrap=True)
        if args.write:  # after every row: a run that is broken off leaves what it found
            text = f"# What a reuse step computes\n\n{__doc__}\n"
            lines = (known[name] for name in CATALOGUE if name in known)
            RESULTS.write_text(text + "\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
