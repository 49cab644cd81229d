"""What a step that reuses still computes, for every DiT of `tests/dits`.

    python -m benchmarks.reuse_cost                    # prints a row per model
    python -m benchmarks.reuse_cost flux latte         # of these models only
    python -m benchmarks.reuse_cost --write            # and writes benchmarks/results/reuse_cost.md

Each model runs with `linear3`. torch's own `FlopCounterMode`, in the place of the inner compiler,
counts the operations of a step that reuses. Shares are of what eager computes. The *ideal* is what
the model computes outside of its blocks: the same counter, by module. The cache is that of all rows
of the batch.
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
from tests.dits.spec import Dit
from tests.helpers.counting import counting

RESULTS = Path(__file__).parent / "results" / "reuse_cost.md"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEPTHS = ("num_layers", "num_single_layers", "num_refiner_layers", "depth", "n_layers")
REUSES = 2  # a step of ten; with `linear3` the second and the third one reuse


@dataclass(frozen=True)
class Cost:
    """What a reuse step computes and keeps.

    Attributes:
        share: its operations, as a share of those of eager.
        ideal: the share of what is outside of the blocks.
        mebibytes: most bytes in the cache, in MiB.
    """

    share: float
    ideal: float
    mebibytes: float


def measure(dit: Dit, dtype: torch.dtype, cut: str | None) -> Cost:
    """Count the operations of one model.

    Raises:
        PabError: the model is refused.
    """
    torch.compiler.reset()
    pab_compile.reset()
    dit = replace(dit, dtype=dtype, inputs=_inputs_in(dit, dtype))
    model, loop = build(dit), Denoising(dit, num_steps=10)
    counted = [0]
    options: dict[str, Any] = {"inner": counting(counted), "ranges": "linear3", **dit.options}
    if cut is not None:
        options["cut"] = cut
    compiled = torch.compile(model, backend="pab", dynamic=False, options=options)
    with FlopCounterMode(display=False) as whole:
        run(model, **loop.at(0))
    with dit.switched():
        for step in range(REUSES + 1):  # one loop, as a sampler's: else the generation would end
            counted[0] = 0
            run(compiled, **loop.at(step))
    total = whole.get_total_flops()
    blocks = sum(
        sum(counts.values())
        for name, counts in whole.get_flop_counts().items()
        if name.split(".", 1)[-1] in _blocks(model)
    )
    kept = pab_compile.stats(compiled).peak_cache_bytes / 2**20
    return Cost(counted[0] / total, 1 - blocks / total, kept)


def _inputs_in(dit: Dit, dtype: torch.dtype) -> Any:
    return lambda **sizes: dit.inputs(**{"dtype": dtype, **sizes})


def _blocks(model: torch.nn.Module) -> set[str]:
    """Paths of the blocks: the entries of every list of modules that lies in no other."""
    lists = [name for name, module in model.named_modules() if _is_list(module)]
    outer = [name for name in lists if not any(name.startswith(f"{o}.") for o in lists)]
    return {
        f"{name}.{child}"
        for name in outer
        for child, _ in model.get_submodule(name).named_children()
    }


def _is_list(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.ModuleList)


def deeper(dit: Dit, depth: int) -> Dit | None:
    """The model with so many layers of each sort; None if its config does not name them so."""
    config = {name: depth if name in DEPTHS else value for name, value in dit.config.items()}
    return None if config == dict(dit.config) else replace(dit, config=config)


def row(dit: Dit, cut: str | None) -> str:
    """A line of the table."""
    cells = []
    for dtype in TYPES.values():
        try:
            found = measure(dit, dtype, cut)
        except (PabError, RuntimeError, TypeError, ValueError) as error:
            cells += [f"{type(error).__name__}", "-", "-"]
            continue
        cells += [f"{found.share:.1%}", f"{found.ideal:.1%}", f"{found.mebibytes:.3f}"]
    return f"| {dit.name} | {' | '.join(cells)} |"


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
        "| model | float32: a reuse step | ideal | cache, MiB "
        "| bfloat16: a reuse step | ideal | cache, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines = []
    for name in track(args.names or list(CATALOGUE), description="models", console=console):
        dit = CATALOGUE[name] if args.layers is None else deeper(CATALOGUE[name], args.layers)
        if dit is None:
            continue
        lines.append(row(dit, args.cut))
        console.print(lines[-1], markup=False, highlight=False, soft_wrap=True)
        if args.write:  # after every row: a run that is broken off leaves what it found
            text = f"# What a reuse step computes\n\n{__doc__}\n"
            RESULTS.write_text(text + "\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    main()
