"""Pairs: how the calls of a generation carry two prompts, for guidance.

It is seen in generations that compute every step: each step makes two calls with the same latents
and other inputs that differ, or one call with such rows in both halves of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pab_compile.plans.guidance import BATCH, CALLS, FIRST, SECOND, GuidancePlan

from .row import Row

_NO_PAIR = (
    "a step makes one call, and the halves of its batch are not the same latents with two prompts. "
    "A model with distilled guidance has nothing to leave out"
)


@dataclass(frozen=True)
class Pairing:
    """How a step carries two prompts.

    Attributes:
        prompts: in two ``"calls"``, or in one ``"batch"``.
        computes: which of the two always computes, ``"first"`` or ``"second"``.
    """

    prompts: str
    computes: str = FIRST

    @property
    def choices(self) -> tuple[Pairing, ...]:
        """The pairings that a plan can have. Of two calls the first one always computes."""
        if self.prompts == CALLS:
            return (self,)
        return replace(self, computes=FIRST), replace(self, computes=SECOND)

    def plan(self, row: Row) -> GuidancePlan | None:
        """What a plan with this row says of guidance."""
        return row.guidance(self.prompts, self.computes)


class Pairs:
    """Watches the calls of generations that compute every step."""

    def __init__(self) -> None:
        self._first: dict[str, torch.Tensor] = {}
        self._calls: list[int] = []
        self._rows = 0
        self._are_pairs = True
        self._are_halves = True

    def see(self, is_new: bool, latents: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Look at a call.

        Args:
            is_new: whether it is the first one of its step.
            latents: which of its tensors are the latents.
            tensors: of the call.
        """
        self._rows = len(tensors[latents])
        if is_new:
            self._calls.append(1)
            self._first = {name: tensor.clone() for name, tensor in tensors.items()}
            self._are_halves = self._are_halves and _has_halves(latents, tensors)
            return
        self._calls[-1] += 1
        self._are_pairs = self._are_pairs and _is_pair(latents, self._first, tensors)

    def see_outputs(self, leaves: Sequence[Any]) -> None:
        """Look at what the call returned: halves of a batch need one part per row."""
        shapes = [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor)]
        have_rows = all(shape and shape[0] == self._rows for shape in shapes)
        self._are_halves = self._are_halves and have_rows

    def pairing(self) -> Pairing | str:
        """How a step carries two prompts, or why it does not."""
        counts = sorted(set(self._calls))
        if counts == [2] and self._are_pairs:
            return Pairing(CALLS)
        if counts == [1] and self._are_halves:
            return Pairing(BATCH)
        if counts == [1]:
            return _NO_PAIR
        if counts == [2]:
            return "the two calls of a step are not of the same latents with two prompts"
        return f"a step makes {' or '.join(map(str, counts))} calls, and two are needed"


def _is_pair(
    latents: str, first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]
) -> bool:
    """Whether two calls have the same latents and other inputs that differ."""
    if first.keys() != second.keys() or not _are_equal(first[latents], second[latents]):
        return False
    return any(not _are_equal(first[name], second[name]) for name in first)


def _has_halves(latents: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether both halves of the rows have the same latents, and other inputs that differ."""
    rows = len(tensors[latents])
    if rows % 2:
        return False
    one, other = tensors[latents].chunk(2)
    if not torch.equal(one, other) or bool((one[1:] == one[:1]).flatten(1).all(1).any()):
        return False
    halves = [x.chunk(2) for x in tensors.values() if x.ndim and len(x) == rows]
    return any(not torch.equal(half, others) for half, others in halves)


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)
