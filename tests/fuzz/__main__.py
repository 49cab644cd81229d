"""``python -m fuzz 10000`` (in ``tests/``) runs random generations and counts wrong reuse."""

from __future__ import annotations

import sys
from collections import Counter

import torch
from tqdm import trange

import pab_compile

from .model import drawn
from .session import OPTIONS, Session, WrongReuse

PER_SESSION = 10


def main(count: int = 10_000, seed: int = 0) -> int:
    """Run sessions; print what was wrong and what was missed."""
    torch._dynamo.config.recompile_limit = 64
    compiled = torch.compile(drawn(), backend="pab", options=OPTIONS, dynamic=False)
    possible: Counter[tuple[str, str]] = Counter()
    missed: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    for number in trange(seed, seed + count // PER_SESSION, unit="session"):
        pab_compile.reset()
        session = Session(compiled._orig_mod, compiled, number)
        try:
            session.run(PER_SESSION)
        except WrongReuse as error:
            wrong.append(str(error))
            print(error, flush=True)
        possible += session.possible
        missed += session.missed
    print(f"{count} generations, {len(wrong)} wrong")
    print(f"{missed.total()} of {possible.total()} possible reuses were not taken")
    for style in sorted(possible):
        print(f"  {style[0]:14} {style[1]:11} {missed[style]:6} of {possible[style]}")
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
