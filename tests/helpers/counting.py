"""An inner compiler that counts the operations of what runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def counting(counted: list[int]) -> Callable[..., Any]:
    """An inner compiler that runs pieces eagerly.

    Args:
        counted: its first entry grows by the operations of every piece that runs, as torch's own
            counter counts them.
    """

    def inner(graph_module: Any, _: Any) -> Any:
        def function(*args: torch.Tensor) -> Any:
            with FlopCounterMode(display=False) as counter:
                results = graph_module(*args)
            counted[0] += counter.get_total_flops()
            return results

        return function

    return inner
