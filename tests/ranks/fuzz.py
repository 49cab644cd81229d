"""Random differences between ranks: ``python -m ranks.fuzz [CASES] [FIRST_SEED]``, in ``tests``.

Two to four processes over gloo run generations in which one of them differs. Prints how often each
difference was tried and, for every seed that ended otherwise than in equal videos or in an error on
every rank within 20 seconds, what happened.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from helpers.difference_fuzz import TIMEOUT, check
from helpers.world import World

CHUNK = 25


def main(arguments: Sequence[str]) -> int:
    """Run the cases; the exit status is the number of those that ended wrongly."""
    num, first = (*map(int, arguments), *(300, 0)[len(arguments) :])
    tried: Counter[str] = Counter()
    wrong = 0
    world = World(2, seconds=TIMEOUT)
    try:
        for start in range(first, first + num, CHUNK):
            for seed, kind, why in check(world, range(start, min(start + CHUNK, first + num))):
                tried[kind] += 1
                if why:
                    wrong += 1
                    print(f"seed {seed}, {kind}: {why}", flush=True)
            print(f"{sum(tried.values())} cases, {wrong} ended wrongly", flush=True)
    finally:
        world.close()
    print(", ".join(f"{kind} {number}" for kind, number in sorted(tried.items())))
    return wrong


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
