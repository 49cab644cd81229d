"""Ranks under a plan that leaves guidance out at single steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import pab_compile
from helpers.captured import usual
from helpers.guided import CALLS, LEFT_OUT, compiled, in_calls, prompts, run, small
from helpers.world import Mesh


@dataclass(frozen=True)
class Found:
    """A generation of one rank.

    Attributes:
        predictions: of all steps.
        computed: outputs of sites by kind.
        notes: of the statistics.
    """

    predictions: torch.Tensor
    computed: dict[str, int]
    notes: tuple[str, ...]


def generate(
    group: dist.ProcessGroup | None, folder: Path, how: str, weights: Any = LEFT_OUT
) -> Found:
    """The second generation, of one process or of ranks, which read a plan file each.

    Args:
        group: the ranks; None for one process.
        folder: for the plan files.
        how: whether ranks share the ``tokens``, the ``rows`` of a batch, or the ``calls`` of a
            step. For the latter a call has one row.
        weights: of the guidance that the plan leaves out.
    """
    options: dict[str, Any] = {}
    if group is not None:
        options = {("mesh" if how == "tokens" else "batch_mesh"): Mesh(group)}
    mine = folder / (str(group.rank()) if group else "alone")
    mine.mkdir(exist_ok=True)
    model = compiled(small(), mine, CALLS, weights, cut="branch", **options)
    rows = slice(1 if how == "calls" else 2)
    texts = [text[rows] for text in prompts()]
    for _ in range(2):
        found = run(in_calls(model), texts, latents=usual("latents")[rows])
    seen = pab_compile.stats(model)
    return Found(found, dict(seen.computed), seen.notes)
