"""``python -m pipelines`` (in ``tests/``) prints the table of ``docs/pipelines.md``.

It checks that every pipeline equals the one with hooks.
"""

from __future__ import annotations

import torch

from helpers.latte import assert_same

from .catalogue import CASES
from .observe import OPTIONS, by_steps, generate, row

HEADER = """\
| | pipeline | timestep | calls per step | lanes | reads at step 0 | later |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Run every pipeline once."""
    print(HEADER)
    for case in CASES.values():
        torch._dynamo.reset()
        pipe = case.build()
        options = {**OPTIONS, **case.dit.options}
        pipe.transformer = torch.compile(pipe.transformer, backend="pab", options=options)
        found = generate(case, pipe, by_steps(case))
        assert_same(found.actual, found.expected)
        print(row(case, found), flush=True)


if __name__ == "__main__":
    main()
