"""Observes a trained model: what changes from step to step, and the plan that this predicts.

    python examples/observe_digits.py
    python examples/observe_digits.py --model joint
    python examples/observe_digits.py --speedup 3 --out outputs/observed.json

Observes a generation of one video per digit, from other noise than the demo's, draws what it saw,
and finds the plan of least predicted error at a speed-up, counted in FLOPs. Then it generates
videos from noise that is neither's, with the plan at several numbers of steps, and with a plain
rule for comparison, and prints both distances from the videos without reuse. The plans of
`tune_digits.py` are better: they are judged by running them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import digits
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from stages import Stages

import pab_compile
from plans import ALL_KINDS

OBSERVED_SEED, CHECKED_SEED = 1000, 2000
SUMS = {"cut": "branch", "coalesce": True}


def compiled(trained: digits.DigitsModel, **options: Any) -> Any:
    """The model, without an inner compiler: this is about numbers."""
    return torch.compile(trained.model, backend="pab", options={"inner": "eager", **options})


def observe(trained: digits.DigitsModel, num_steps: int, stages: Stages) -> pab_compile.Observation:
    """Observes one video per digit."""
    prompts = torch.arange(digits.NUM_DIGITS)
    noise = digits.make_noise(len(prompts), seed=OBSERVED_SEED)
    model = compiled(trained, **SUMS)
    with stages.stage(f"observe {num_steps} steps", num_steps) as advance:
        return pab_compile.observe(
            lambda: digits.generate(
                trained, prompts, noise, model=model, num_steps=num_steps, on_step=advance
            )
        )


def distances(
    trained: digits.DigitsModel,
    models: list[Any],
    num_steps: int,
    num_videos: int,
    stages: Stages,
) -> list[float]:
    """Mean PSNR in dB of each model's videos against those without reuse."""
    prompts = torch.arange(num_videos) % digits.NUM_DIGITS
    noise = digits.make_noise(num_videos, seed=CHECKED_SEED)
    found = []
    with stages.stage(f"try {num_steps} steps", (1 + len(models)) * num_steps) as advance:
        plain = digits.generate(trained, prompts, noise, num_steps=num_steps, on_step=advance)
        for model in models:
            pab_compile.reset()
            videos = digits.generate(
                trained, prompts, noise, model=model, num_steps=num_steps, on_step=advance
            )
            errors = ((videos - plain) / 2).square().mean((1, 2, 3, 4))
            found.append(float(-10 * errors.log10().mean()))
    return found


def try_plan(trained: digits.DigitsModel, args: argparse.Namespace, stages: Stages) -> None:
    """Saves the plan, and prints how it does on other videos."""
    seen, console = observe(trained, args.steps, stages), stages.console
    for path in (args.plot, args.out):
        path.parent.mkdir(parents=True, exist_ok=True)
    seen.plot().savefig(args.plot, dpi=80)
    found = pab_compile.tune(seen, speedup=args.speedup, max_order=args.max_order)
    found.save(args.out)
    entries = "".join("C" if entry < 0 else str(entry) for entry in found.entries)
    console.print(
        f"{entries}: {found.speedup:.2f}x in FLOPs, predicted error {found.error:.4f}, at most "
        f"{found.cache_bytes / 2**20:.2f} MiB; wrote {args.out} and {args.plot}",
        highlight=False,
        soft_wrap=True,
    )
    if not args.videos:
        return
    rule = {"ranges": dict.fromkeys(ALL_KINDS, 4), "predict": 1}
    models = [
        compiled(trained, plan=args.out),
        compiled(trained, **rule, **SUMS, window=(0.1, 1.0)),
    ]
    table = Table("steps", "PSNR dB, plan", "PSNR dB, every 4th step, linear", box=box.SIMPLE)
    for num_steps in args.tried:
        values = distances(trained, models, num_steps, args.videos, stages)
        table.add_row(str(num_steps), *(f"{value:.1f}" for value in values))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=digits.FAMILIES, default="latte")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--speedup", type=float, default=4.0, help="in FLOPs")
    parser.add_argument("--max-order", type=int, default=1, help="0 repeats, 1 linear, 2 quadratic")
    parser.add_argument("--videos", type=int, default=4, help="to try the plan on; 0: do not")
    parser.add_argument("--tried", type=int, nargs="+", default=[20, 30, 50], help="steps")
    parser.add_argument("--out", type=Path, default=Path("outputs/observed.json"), help="the plan")
    parser.add_argument("--plot", type=Path, default=Path("outputs/observed.png"))
    args, console = parser.parse_args(), Console()
    trained = digits.load(digits.find_folder(args.model))
    with Stages(console, 1 + len(args.tried) * bool(args.videos)) as stages:
        try_plan(trained, args, stages)


if __name__ == "__main__":
    main()
