"""Videos of digits by several processes that share their frames, checked against one process.

    torchrun --nproc-per-node 2 examples/torchrun_latte.py

Each process calls the small Latte of `examples/digits_latte` with the same inputs and gets the full
video. Prints how long a generation took with reuse and without, and what one process exchanges with
the others, as foretold from the graph. Exits with 1 if the video is another than one process makes.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import digits
import torch
import torch.distributed as dist
from plans import PLANS

import pab_compile

TOLERANCE = 1e-4
VARIANTS: dict[str, dict[str, Any]] = {"computes always": {"ranges": {}}, "pab246": PLANS["pab246"]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=3)
    parser.add_argument("--inner", default="eager", help="compiler of the pieces, or inductor")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    num_ranks = dist.get_world_size()
    is_first = dist.get_rank() == 0
    latte = digits.load()
    latte.model.requires_grad_(False)
    failed = False
    for name, plan in VARIANTS.items():
        videos = {}
        for label, parallel in (
            ("one process", {}),
            (f"{num_ranks} processes", {"sequence_parallel": num_ranks}),
        ):
            options = {**plan, "inner": args.inner, **parallel}
            compiled = torch.compile(latte.model, backend="pab", options=options)
            for _ in range(2):  # the first one compiles
                start = time.perf_counter()
                videos[label] = digits.generate(
                    latte,
                    torch.tensor([args.prompt]),
                    digits.make_noise(1),
                    model=compiled,
                    num_steps=args.steps,
                )
                seconds = time.perf_counter() - start
            if is_first:
                computed = pab_compile.stats(compiled).computed_steps
                print(f"{name}, {label}: {seconds:.2f} s, computed steps {computed}")
        alone, together = videos.values()
        error = ((alone - together).abs().max() / alone.abs().max()).item()
        failed |= error > TOLERANCE
        if is_first:
            print(f"{name}: largest difference {error:.1e} of the largest value")
            schedule = pab_compile.Schedule(args.steps)
            inputs: Any = latte.example_inputs()
            print(
                pab_compile.comm(
                    latte.model, **inputs, num_ranks=num_ranks, schedule=schedule, options=plan
                )
            )
    dist.destroy_process_group()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
