"""Two or more GPUs share the tokens of one video: times, and whether one GPU makes the same.

    torchrun --nproc-per-node 2 -m benchmarks.ranks            # NCCL; meant for about three minutes
    torchrun --nproc-per-node 2 -m benchmarks.ranks --quick    # a tiny model; gloo without GPUs

Every rank first generates alone, then all together, without reuse and with PAB246. The first rank
prints milliseconds per step, and the largest difference to one device as a share of the largest
output. The exit status is 1 if a difference is too large. It has never run with NCCL or on GPUs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import pab_compile

from .latte import TINY, Size, make_latents, make_model, make_prompts

REAL = Size(num_layers=8, num_heads=16, head_dim=72, num_frames=16, side=64, num_tokens=120)
PLANS: dict[str, dict[str, Any]] = {
    "without reuse": {"ranges": {}},
    "PAB246": {"ranges": "pab246", "window": (0.0, 1.0)},
}
STEPS = 12
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Compared:
    """Generations of one plan, by one device and by all.

    Attributes:
        plan: name of the plan.
        alone: milliseconds per step on one device.
        together: milliseconds per step on all.
        difference: the largest one between the last outputs, as a share of the largest output.
    """

    plan: str
    alone: float
    together: float
    difference: float

    def line(self, num: int) -> str:
        """The result in print."""
        return (
            f"{self.plan}: {self.alone:.2f} ms per step on one, {self.together:.2f} ms on {num} "
            f"({self.alone / self.together:.2f}x), largest difference {self.difference:.1e}"
        )


def main() -> int:
    """Measure on all ranks, and print on the first."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, not compiled")
    quick = parser.parse_args().quick
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        prints = dist.get_rank() == 0
        if prints:
            print(f"{mesh.size()} x {_name(device)}, {dtype}, {STEPS} steps", flush=True)
        worst = 0.0
        size, inner = (TINY, "eager") if quick else (REAL, "inductor")
        for found in measure(size, device, dtype, mesh, inner):
            worst = max(worst, found.difference)
            if prints:
                print(found.line(mesh.size()), flush=True)
        return int(worst > BOUNDS[dtype])
    finally:
        dist.destroy_process_group()


def measure(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    mesh: DeviceMesh,
    inner: str,
    plans: Mapping[str, dict[str, Any]] = PLANS,
) -> Iterator[Compared]:
    """Generate alone and together under each plan.

    Args:
        size: of the model.
        device: of this rank.
        dtype: of the weights.
        mesh: the ranks that share the tokens.
        inner: what compiles the pieces.
        plans: name -> options.
    """
    torch.compiler.config.recompile_limit = 32  # one model, several variants
    model = make_model(size, str(device), dtype)
    for plan, options in plans.items():
        alone, expected = _generate(model, size, {**options, "inner": inner})
        dist.barrier(mesh.get_group())
        together, found = _generate(model, size, {**options, "inner": inner, "mesh": mesh})
        difference = float((found - expected).abs().max() / expected.abs().max())
        yield Compared(plan, alone, together, difference)


def _generate(model: Any, size: Size, options: dict[str, Any]) -> tuple[float, torch.Tensor]:
    """Milliseconds per step of the second generation, and its last output."""
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    latents = make_latents(size, str(device), dtype)
    prompt = make_prompts(size, str(device), dtype, batch=1)
    compiled: Any = torch.compile(model, backend="pab", options=options)
    timesteps = [999 - 80 * step for step in range(STEPS)]
    output, start = latents, 0.0
    for _ in range(2):  # the first one compiles
        _wait(device)
        start, x = time.perf_counter(), latents
        with pab_compile.generation(timesteps=timesteps), torch.no_grad():
            for timestep in timesteps:
                now = torch.tensor([timestep], device=device)
                output = compiled(x, now, prompt, return_dict=False)[0]
                x = x - 0.1 * output[:, : x.shape[1]]
        _wait(device)
    return 1000 * (time.perf_counter() - start) / STEPS, output.float()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())
