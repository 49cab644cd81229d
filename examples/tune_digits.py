"""Tunes the plans of a trained model: which steps compute, and how the others combine outputs.

    python examples/tune_digits.py                  # both plans of the Latte: 10 and 7 of 30 steps
    python examples/tune_digits.py --model joint
    python examples/tune_digits.py --computed 5 --out outputs

Fits the plans on some videos, measures them on others, prints both beside what costs as much, and
writes them beside the model: `plan_10.json` and `plan_7.json`. The noise is not the demo's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import digits
import torch
from rich.console import Console

import pab_compile
from plans import plan_file

FIRST_SEED = 1000


def tune(trained: digits.DigitsModel, computed: int, args: argparse.Namespace) -> pab_compile.Tuned:
    """Finds a plan. A prompt is a seed; its last digit is shown."""

    def generate(seed: int, num_steps: int) -> torch.Tensor:
        shown, noise = torch.tensor([seed % digits.NUM_DIGITS]), digits.make_noise(1, seed=seed)
        return digits.generate(trained, shown, noise, num_steps=num_steps)

    return pab_compile.tune(
        generate,
        range(FIRST_SEED, FIRST_SEED + args.fitted + args.held_out),
        model=trained.model,
        num_steps=args.steps,
        computed=computed,
        held_out=args.held_out,
        rounds=args.rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=digits.FAMILIES, default="latte")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--computed", type=int, nargs="+", default=[10, 7], help="steps")
    parser.add_argument("--fitted", type=int, default=8, help="videos of the fit")
    parser.add_argument("--held-out", type=int, default=8, help="videos that are measured")
    parser.add_argument("--rounds", type=int, default=1, help="of the last fit")
    parser.add_argument("--out", type=Path, help="folder of the plans (default: the model's)")
    args, console = parser.parse_args(), Console()
    folder = args.out or digits.find_folder(args.model)
    folder.mkdir(parents=True, exist_ok=True)
    trained = digits.load(digits.find_folder(args.model))
    for computed in args.computed:
        tuned, path = tune(trained, computed, args), folder / plan_file(computed)
        console.print(str(tuned), markup=False, highlight=False, soft_wrap=True)
        tuned.save(path)
        console.print(f"wrote {path}\n", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
