"""Makes a video by one process and by all of them together, and compares.

What the examples `torchrun_latte.py` and `torchrun_open_sora.py` share.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

import pab_compile

TOLERANCE = 1e-4  # of the largest value, over a whole generation


def parser(doc: str, num_steps: int) -> argparse.ArgumentParser:
    """Options of every example."""
    found = argparse.ArgumentParser(description=doc.split("\n")[0])
    found.add_argument("--steps", type=int, default=num_steps)
    found.add_argument("--inner", default="eager", help="compiler of the pieces, or inductor")
    return found


def in_one_group(run: Callable[[], bool]) -> int:
    """Run as one of the processes that torchrun started.

    Args:
        run: what every process does; whether the videos agree.

    Returns:
        The exit status.
    """
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    try:
        return int(not run())
    finally:
        dist.destroy_process_group()


def compare(
    model: torch.nn.Module,
    variants: Mapping[str, Mapping[str, Any]],
    generate: Callable[[Any], torch.Tensor],
    inputs: Mapping[str, Any],
    schedule: pab_compile.Schedule,
    inner: str = "eager",
) -> bool:
    """Generate with every variant, alone and together; print times, steps and what is exchanged.

    Args:
        model: the transformer.
        variants: options of the backend by name.
        generate: makes a video with a compiled model, the same one in every process.
        inputs: of one call of the model.
        schedule: its steps.
        inner: compiler of the pieces.

    Returns:
        Whether all videos are those of one process.
    """
    num_ranks, is_first = dist.get_world_size(), dist.get_rank() == 0

    def video_of(name: str, label: str, **parallel: int) -> torch.Tensor:
        options = {**variants[name], "inner": inner, **parallel}
        compiled = torch.compile(model, backend="pab", options=options)
        if is_first:
            print(f"{name}, {label}: two generations, the first compiles", flush=True)
        generate(compiled)
        start = time.perf_counter()
        video = generate(compiled)
        seconds = time.perf_counter() - start
        if is_first:
            computed = pab_compile.stats(compiled).computed_steps
            print(f"{name}, {label}: {seconds:.2f} s, computed steps {computed}", flush=True)
        return video

    agree = True
    for name in variants:
        together = video_of(name, f"{num_ranks} processes", sequence_parallel=num_ranks)
        alone = video_of(name, "one process") if is_first else torch.empty_like(together)
        dist.broadcast(alone, src=0)
        error = ((alone - together).abs().max() / alone.abs().max()).item()
        agree &= error <= TOLERANCE
        if is_first:
            print(f"{name}: largest difference {error:.1e} of the largest value", flush=True)
    if is_first:
        name, variant = list(variants.items())[-1]
        predicted = pab_compile.comm(
            model, **inputs, num_ranks=num_ranks, schedule=schedule, options=variant
        )
        print(f"predicted for {name}:\n{predicted}")
    return agree
