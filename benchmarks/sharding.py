"""Processor time that ranks spend on sharding a deep model, beside that of its analysis.

    python -m benchmarks.sharding

The model is that of `examples` (`examples/open_sora.py`) with 28 pairs of blocks at its real width,
on `meta` tensors. Eight ranks share its tokens. Each rank does this once per size that is new.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from dataclasses import replace

import torch
from rich.console import Console

from pab_compile.options import parse_options
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import ShardTokens
from pab_compile.passes.program import run_passes
from pab_compile.traffic.comm import look_at

from . import examples  # noqa: F401  (it puts the examples on the path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=28, help="pairs of blocks")
    parser.add_argument("--profile", action="store_true", help="also print what takes the time")
    given = parser.parse_args()
    from models import open_sora

    with torch.device("meta"):
        model = open_sora.STDiT3(replace(open_sora.XL_2, depth=given.depth)).eval()
        latents, prompt = torch.empty(2, 4, 16, 60, 106), torch.empty(2, 1, 300, 4096)
        arguments = (latents, torch.empty(2), prompt, torch.ones(2, 300, dtype=torch.int64))
        inputs = {name: torch.empty(1) for name in ("fps", "height", "width")}
    start = time.process_time()
    (program,) = look_at(model.requires_grad_(False), arguments, inputs, parse_options({}))
    analysed = time.process_time() - start
    gc.disable()  # as a compilation does
    shard = ShardTokens(Ranks(8, 0, "ranks"), lambda site: 1.0)
    profile = cProfile.Profile()
    if given.profile:
        profile.enable()
    start = time.process_time()
    run_passes(program, (shard,))
    sharded = time.process_time() - start
    profile.disable()
    console = Console()
    num = len(program.graph_module.graph.nodes)
    console.print(f"{given.depth} pairs of blocks, {num} nodes in the graph of a rank")
    console.print(f"capture and analysis: {analysed:.1f} s of processor time")
    console.print(f"sharding over 8 ranks: {sharded:.1f} s of processor time")
    if given.profile:
        pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
