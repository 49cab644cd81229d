"""``python -m pipelines`` (in ``tests/``) prints the table of ``docs/pipelines.md``."""

from __future__ import annotations

import torch

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
        pipe.transformer = torch.compile(pipe.transformer, backend="pab", options=OPTIONS)
        print(row(case, generate(case, pipe, by_steps(case))), flush=True)


if __name__ == "__main__":
    main()
