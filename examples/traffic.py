"""What processes exchange for one video of Open-Sora 1.2, predicted for any number of them.

    python examples/traffic.py
    python examples/traffic.py --ranks 8 --depth 28

The model at its real size, but described only (no weights, no process group): 2 s of 480p, 30
steps, the published ranges. Counts as the papers do (arXiv 2403.10266, 2408.12588), and what
crosses the wire. `--depth 28` is the whole model; fewer blocks are quicker, their bytes are scaled.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import torch

import pab_compile
from models import open_sora, rectified_flow

OPTIONS = {"ranges": "open-sora", "cut": "gated"}


@dataclass(frozen=True)
class Described:
    """The model at its real size, without weights, and how it is called.

    Attributes:
        model: on the `meta` device.
        inputs: of one call, guidance in one batch.
        schedule: 30 steps of rectified flow.
    """

    model: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    schedule: pab_compile.Schedule


def describe(depth: int, num_frames: int = 51) -> Described:
    """Open-Sora 1.2 for a video of 480p: 51 frames (2 s) are 15 frames of latents."""
    frames = num_frames // 17 * 5
    with torch.device("meta"):
        config = replace(open_sora.XL_2, depth=depth)
        model = open_sora.STDiT3(config).to(torch.bfloat16).eval().requires_grad_(False)
        inputs = {
            "x": torch.empty(2, config.in_channels, frames, 60, 106, dtype=torch.bfloat16),
            "timestep": torch.empty(2),
            "y": torch.empty(
                2, 1, config.max_prompt_tokens, config.caption_channels, dtype=torch.bfloat16
            ),
            "mask": torch.ones(2, config.max_prompt_tokens, dtype=torch.int64),
            **{name: torch.empty(1) for name in ("fps", "height", "width")},
        }
    table = rectified_flow.timesteps(30, height=480, width=854, num_frames=num_frames)
    # The reference's window looks at whole timesteps in the model's bfloat16.
    schedule = pab_compile.Schedule(30, tuple(table.bfloat16().trunc().tolist()))
    return Described(model, inputs, schedule)


def predict(num_ranks: int, depth: int) -> pab_compile.CommReport:
    """The traffic of a generation of 2 s by a number of ranks."""
    found = describe(depth)
    return pab_compile.comm(
        found.model, **found.inputs, num_ranks=num_ranks, schedule=found.schedule, options=OPTIONS
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4, 8, 15])
    parser.add_argument("--depth", type=int, default=1, help="pairs of blocks to look at, of 28")
    args = parser.parse_args(arguments)
    times = open_sora.XL_2.depth / args.depth
    print("ranks  axis  GB without reuse  GB with PAB246  GB on the wire with PAB246", flush=True)
    for num_ranks in args.ranks:
        found = predict(num_ranks, args.depth)
        gather = sum(row.wire_bytes for row in found.rows if row.what == "gather at the end")
        wire = times * (found.wire_bytes - gather) + gather
        print(
            f"{num_ranks:5}  {found.axis:>4}"
            f"  {times * found.convention_bytes_without_reuse / 1e9:16.3f}"
            f"  {times * found.convention_bytes / 1e9:14.3f}  {wire / 1e9:26.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
