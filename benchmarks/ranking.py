"""Whether predicted errors rank plans as measured errors do, on the demo's trained model.

    python -m benchmarks.ranking

Observes one generation, draws random plans (all sites alike, kinds alike, or every site by itself;
random steps, orders 0 to 2), and compares `pab_compile.predicted_error` with the root mean square
difference of the videos, made from other noise, to those without reuse: Spearman's rank correlation
over all plans and over those of each sort. Compiles nothing (`inner="eager"`): it is about numbers.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

import pab_compile
from pab_compile.plan import COMPUTE

from .examples import digits

SORTS = ("all sites alike", "kinds alike", "every site by itself")


def draw_row(draw: random.Random, num_steps: int) -> tuple[int, ...]:
    """Entries of one site: the first steps compute, then gaps of up to six steps."""
    warm, every, order = draw.randint(1, 4), draw.randint(2, 6), draw.randint(0, 2)
    entries = [COMPUTE] * warm
    while len(entries) < num_steps:
        entries += [order] * draw.randint(max(every - 2, 0), every) + [COMPUTE]
    return tuple(entries[:num_steps])


def draw_rows(
    draw: random.Random, sort: str, sites: Sequence[Any], num_steps: int
) -> dict[str, tuple[int, ...]]:
    """A random plan."""
    keys = {SORTS[0]: lambda s: "", SORTS[1]: lambda s: s.kind, SORTS[2]: lambda s: s.name}
    rows: dict[str, tuple[int, ...]] = {}
    for site in sites:
        key = keys[sort](site)
        if key not in rows:
            rows[key] = draw_row(draw, num_steps)
    return {site.name: rows[keys[sort](site)] for site in sites}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cut", choices=("attention", "gated"), default="attention")
    args, console = parser.parse_args(), Console()
    latte, draw = digits.load(), random.Random(0)
    prompts = torch.arange(args.videos) % digits.NUM_DIGITS
    rows: dict[str, tuple[int, ...]] = {}

    def plan(site: Any, step: int, *_: Any) -> int | None:
        entry = rows[site.name][step] if rows else COMPUTE
        return None if entry == COMPUTE else entry

    options = {"inner": "eager", "cut": args.cut, "plan": plan}
    model = torch.compile(latte.model, backend="pab", options=options)

    def generate(seed: int) -> torch.Tensor:
        pab_compile.reset()
        noise = digits.make_noise(args.videos, seed=seed)
        return digits.generate(latte, prompts, noise, model=model, num_steps=args.steps)

    observation = pab_compile.observe(lambda: generate(seed=0))
    reference = generate(seed=1)
    predicted, measured, sorts = [], [], []
    for number in track(range(args.plans), "random plans", console=console):
        sorts.append(SORTS[number % len(SORTS)])
        rows.update(draw_rows(draw, sorts[-1], observation.sites, args.steps))
        measured.append((generate(seed=1) - reference).square().mean().sqrt().item())
        predicted.append(pab_compile.predicted_error(observation, rows))
    table = Table("plans", "number", "rank correlation", box=box.SIMPLE)
    for sort in ("all", *SORTS):
        chosen = [i for i, found in enumerate(sorts) if sort in ("all", found)]
        pairs = [predicted[i] for i in chosen], [measured[i] for i in chosen]
        table.add_row(sort, str(len(chosen)), f"{spearmanr(*pairs).statistic:.2f}")
    console.print(table)
    console.print(
        f"{args.videos} videos, {args.steps} steps, cut={args.cut}, errors predicted "
        f"{min(predicted):.3f} to {max(predicted):.3f}, measured {min(measured):.3f} to "
        f"{max(measured):.3f}. Command: python -m benchmarks.ranking"
    )


if __name__ == "__main__":
    main()
