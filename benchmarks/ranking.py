"""Whether predicted errors rank plans as measured errors do, on a trained model.

    python -m benchmarks.ranking
    python -m benchmarks.ranking --model joint
    python -m benchmarks.ranking --near 7          # plans near the best one with 7 computed steps

Observes one generation, draws random plans (all sites alike: one to four steps that compute, then
random gaps of up to six, orders 0 to 2, the same in all gaps or not), or moves a few computed steps
of the plan with the least predicted error, and compares
`pab_compile.predicted_error` with the root mean square difference of the videos, made from other
noise, to those without reuse: Spearman's rank correlation. Compiles nothing (`inner="eager"`): this
is about numbers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from scipy.stats import bootstrap, spearmanr

import pab_compile
from pab_compile.calibration.cost import flops_cost
from pab_compile.plans.plan import COMPUTE

from .examples import digits


def draw_row(draw: random.Random, num_steps: int) -> tuple[int, ...]:
    """Entries of all sites: the first steps compute, then gaps of up to six steps."""
    warm, every, order = draw.randint(1, 4), draw.randint(2, 6), draw.randint(0, 2)
    is_mixed = draw.random() < 0.3
    entries = [COMPUTE] * warm
    while len(entries) < num_steps:
        own = draw.randint(0, 2) if is_mixed else order
        entries += [own] * draw.randint(max(every - 2, 0), every) + [COMPUTE]
    return tuple(entries[:num_steps])


def draw_near(draw: random.Random, best: Sequence[int]) -> tuple[int, ...]:
    """The same entries with up to four computed steps moved by a step or two."""
    steps = [step for step, entry in enumerate(best) if entry == COMPUTE]
    orders = [max(best[step + 1 : step + 2], default=COMPUTE) for step in steps]
    orders = [1 if order == COMPUTE else order for order in orders]
    for _ in range(draw.randint(1, 4)):
        moved = draw.randrange(1, len(steps))
        to, ends = steps[moved] + draw.choice((-2, -1, 1, 2)), [*steps, len(best)]
        if ends[moved - 1] < to < ends[moved + 1]:
            steps[moved] = to
    ends = [*steps[1:], len(best)]
    gaps = zip(steps, ends, orders, strict=True)
    return tuple(e for step, end, order in gaps for e in [COMPUTE, *[order] * (end - step - 1)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=digits.FAMILIES, default="latte")
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--near", type=int, metavar="N", help="plans near the best with N computed")
    parser.add_argument("--cut", choices=("attention", "gated", "branch"), default="gated")
    args, console = parser.parse_args(), Console()
    trained, draw = digits.load(digits.find_folder(args.model)), random.Random(0)
    prompts = torch.arange(args.videos) % digits.NUM_DIGITS
    row: tuple[int, ...] = (COMPUTE,) * args.steps

    def plan(site: Any, step: int, *_: Any) -> int | None:
        return None if row[step] == COMPUTE else row[step]

    options = {"inner": "eager", "cut": args.cut, "plan": plan}
    model = torch.compile(trained.model, backend="pab", options=options)

    def generate(seed: int) -> torch.Tensor:
        pab_compile.reset()
        noise = digits.make_noise(args.videos, seed=seed)
        return digits.generate(trained, prompts, noise, model=model, num_steps=args.steps)

    observation = pab_compile.observe(lambda: generate(seed=0))
    reference, best = generate(seed=1), None
    if args.near:
        speedup = flops_cost(observation).speedup(args.near, args.steps)
        best = pab_compile.tune(observation, speedup=speedup).entries
    predicted, measured = [], []
    for _ in track(range(args.plans), "random plans", console=console):
        row = draw_row(draw, args.steps) if best is None else draw_near(draw, best)
        measured.append((generate(seed=1) - reference).square().mean().sqrt().item())
        predicted.append(pab_compile.predicted_error(observation, row))

    def correlation(*pairs: Any) -> float:
        return float(spearmanr(*pairs).statistic)

    found = bootstrap(
        (predicted, measured), correlation, paired=True, vectorized=False, rng=0, n_resamples=1000
    ).confidence_interval
    console.print(
        f"rank correlation of {args.plans} plans: {correlation(predicted, measured):.2f} "
        f"[{found.low:.2f}, {found.high:.2f}] (95 % bootstrap interval)\n"
        f"{args.videos} videos, {args.steps} steps, cut={args.cut}, errors predicted "
        f"{min(predicted):.4f} to {max(predicted):.4f}, measured {min(measured):.3f} to "
        f"{max(measured):.3f}. Command: python -m benchmarks.ranking --model {args.model} "
        f"--plans {args.plans} --videos {args.videos} --steps {args.steps} --cut {args.cut}"
        f"{f' --near {args.near}' if args.near else ''}"
    )


if __name__ == "__main__":
    main()
