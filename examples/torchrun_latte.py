"""Videos of digits by several processes that share their frames, checked against one process.

    torchrun --nproc-per-node 2 examples/torchrun_latte.py

Each process calls the small Latte of `examples/digits_latte` with the same inputs and gets the full
video. Prints how long a generation took with reuse and without, and what one process exchanges with
the others, as predicted from the graph. Exits with 1 if one process makes another video.
"""

from __future__ import annotations

import sys
from typing import Any

import digits
import together
import torch

import pab_compile
from plans import RULES

VARIANTS: dict[str, dict[str, Any]] = {"computes always": {"ranges": {}}, "pab246": RULES["pab246"]}


def main() -> int:
    parser = together.parser(__doc__ or "", num_steps=12)
    parser.add_argument("--prompt", type=int, default=3)
    args = parser.parse_args()
    latte = digits.load()
    latte.model.requires_grad_(False)
    prompt, noise = torch.tensor([args.prompt]), digits.make_noise(1)

    def generate(model: Any) -> torch.Tensor:
        return digits.generate(latte, prompt, noise, model=model, num_steps=args.steps)

    def run() -> bool:
        schedule = pab_compile.Schedule(args.steps)
        inputs = latte.example_inputs()
        return together.compare(latte.model, VARIANTS, generate, inputs, schedule, args.inner)

    return together.in_one_group(run)


if __name__ == "__main__":
    sys.exit(main())
