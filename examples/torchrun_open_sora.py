"""A small Open-Sora 1.2 by several processes that share its frames, checked against one process.

    torchrun --nproc-per-node 2 examples/torchrun_open_sora.py

The model and the sampling of `open_sora.py`: 15 frames, which two processes share unevenly. Prints
how long a generation took with reuse and without, and what one process exchanges with the others,
as predicted from the graph. Exits with 1 if the video is another than one process makes.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import open_sora
import together

import pab_compile

VARIANTS: dict[str, dict[str, Any]] = {
    "computes always": {"ranges": {}},
    "pab246": {"ranges": open_sora.SETTING.preset, "cut": open_sora.SETTING.cut},
}


def check(num_steps: int, inner: str = "eager") -> bool:
    """Whether the video of all processes is that of one."""
    model, sampling = open_sora.make(num_steps)
    schedule = pab_compile.Schedule(num_steps, tuple(sampling.table.tolist()))
    inputs = sampling.inputs(sampling.latents, sampling.table[0])
    generate = partial(open_sora.generate, sampling=sampling)
    return together.compare(model, VARIANTS, generate, inputs, schedule, inner)


def main() -> int:
    args = together.parser(__doc__ or "", num_steps=open_sora.SETTING.steps).parse_args()
    return together.in_one_group(lambda: check(args.steps, args.inner))


if __name__ == "__main__":
    sys.exit(main())
