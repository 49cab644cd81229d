"""``python -m random_models 1000`` (in ``tests/``) checks random models, and says what is wrong."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from tqdm import trange

from .check import judged
from .draw import draw


def main(count: int = 1000, seed: int = 0) -> int:
    """Check models; print what was wrong with which, and which traits these have."""
    torch.set_num_threads(1)
    wrong: dict[int, str] = {}
    for number in trange(seed, seed + count, unit="model"):
        if found := judged(draw(number)):
            wrong[number] = found
            print(f"{draw(number)}\n    {found}", flush=True)
    refused = [number for number, found in wrong.items() if found.startswith("refused")]
    print(f"{count} models, {len(wrong) - len(refused)} wrong, {len(refused)} refused")
    _print_traits(range(seed, seed + count), wrong)
    return len(wrong) - len(refused)


def _print_traits(seeds: range, wrong: dict[int, str]) -> None:
    """How often models with a trait failed, the most frequent first."""
    total: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for seed in seeds:
        traits = [f"{name}={value}" for name, value in draw(seed).traits().items()]
        total.update(traits)
        failed.update(traits if seed in wrong else ())
    shares = sorted(failed, key=lambda trait: -failed[trait] / total[trait])
    for trait in shares[:20]:
        print(f"  {trait:32} {failed[trait]:4} of {total[trait]}")


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
