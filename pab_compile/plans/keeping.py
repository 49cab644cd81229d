"""Keeping: how the outputs of sites are kept for later steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .budget import Budget


@dataclass(frozen=True)
class Keeping:
    """How the outputs of sites are kept.

    Attributes:
        dtype: what wider tensors are converted to; None keeps every tensor as it was computed.
        offload: whether they wait in the memory of the host.
        budget: memory on the device for one generation; None for any amount.
        is_given: whether the user gave the budget.
        narrows: whether everything is converted to the narrowest dtype if the budget is short.
    """

    dtype: torch.dtype | None = None
    budget: Budget | None = None
    offload: bool = False
    is_given: bool = True
    narrows: bool = False


AS_COMPUTED = Keeping()
