"""How long Open-Sora 1.2 would take on 1 to 64 GPUs, predicted, beside what is published.

    python examples/scaling.py
    python examples/scaling.py --seconds 26.54 --frames 51

The model at its real size, but described only. One GPU's rate follows from the published time of
one H100 without reuse, 97.5 s for about 8 s of 480p; links are taken as 300 GB/s inside a node of
eight and 40 GB/s between nodes, 20 and 40 microseconds per collective: assumptions, not measured.
"""

from __future__ import annotations

import argparse

import pab_compile
import traffic
from models import open_sora

# Eight H100, 480p (arXiv 2408.12588): sequence parallelism alone, and with PAB246.
PUBLISHED = {"one GPU": 97.5, "eight": 12.01, "eight with PAB246": 9.29}
FRAMES = 204  # 8 s; the paper gives 21.3 to 21.6 frames per second


def predict(
    depth: int, num_frames: int, machine: pab_compile.Machine | float
) -> pab_compile.Scaling:
    """The times of a generation on 1 to 64 GPUs."""
    found = traffic.describe(depth, num_frames)
    return pab_compile.scaling(
        found.model,
        **found.inputs,
        schedule=found.schedule,
        machine=machine,
        options=traffic.OPTIONS,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=PUBLISHED["one GPU"], help="on one GPU")
    parser.add_argument("--frames", type=int, default=FRAMES, help="a multiple of 17")
    parser.add_argument("--depth", type=int, default=open_sora.XL_2.depth, help="pairs of blocks")
    args = parser.parse_args(arguments)
    found = predict(args.depth, args.frames, args.seconds)
    print(found)
    row = found[8]
    if (args.seconds, args.frames) == (PUBLISHED["one GPU"], FRAMES) and row.always and row.planned:
        print("eight GPUs                     predicted  published")
        alone, eight, planned = PUBLISHED.values()
        before, after = row.always.seconds, row.planned.seconds
        for what, ours, theirs in (
            ("speed-up by eight GPUs", found.alone.seconds / before, alone / eight),
            ("speed-up by PAB246 on them", before / after, eight / planned),
            ("both", found.alone.seconds / after, alone / planned),
        ):
            print(f"  {what:<28} {ours:7.2f}x  {theirs:8.2f}x")


if __name__ == "__main__":
    main()
