"""Weights: whether they still have the values that cached tensors were computed from.

torch counts writes to a tensor (its version). It does not count writes through ``tensor.data``. A
hot-swapped adapter is written like that, so ``watch_hotswap`` follows the function of peft that
does it. Any other such write must be announced with ``weights_changed()``.
"""

from __future__ import annotations

import functools
import importlib
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.dynamo import torchs_own_functions

from .clock import version_of

_NUM_SAMPLES = 8
_HOTSWAP = ("peft.utils.hotswap", "hotswap_adapter_from_state_dict")


@dataclass(frozen=True, eq=False)
class WeightMark:
    """A weight as it was when something was computed from it.

    Attributes:
        weight: the weight.
        version: its version.
        address: address of its memory.
        sample: some of its elements, as bytes; on an accelerator they stay there. They are compared
            only if the memory moved, as an offloaded weight does.
    """

    weight: weakref.ref[torch.Tensor]
    version: int
    address: int
    sample: torch.Tensor | bytes

    @staticmethod
    def of(weight: torch.Tensor) -> WeightMark:
        """The mark of a weight as it is now."""
        return WeightMark(
            weakref.ref(weight), version_of(weight), weight.data_ptr(), _sample(weight)
        )

    def is_unchanged(self, weight: torch.Tensor) -> bool:
        """Whether a weight is this one, with the values that it had."""
        if self.weight() is not weight or version_of(weight) != self.version:
            return False
        if weight.data_ptr() == self.address:
            return True
        return _read(_sample(weight)) == _read(self.sample)


def _read(sample: torch.Tensor | bytes) -> bytes:
    if isinstance(sample, bytes):
        return sample
    with torchs_own_functions():
        return bytes(sample.tolist())


def _sample(weight: torch.Tensor) -> torch.Tensor | bytes:
    with torchs_own_functions():  # the numbers in memory, whatever they stand for
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() // _NUM_SAMPLES)
        sample = flat[::stride][:_NUM_SAMPLES].clone().view(torch.uint8)
    return _read(sample) if weight.device.type == "cpu" else sample


class WeightMarks:
    """The weights of one graph, as they were.

    Args:
        weights: the weights, in the order of the graph's inputs.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._marks = [WeightMark.of(weight) for weight in weights]
        self._writes = writes.count

    def are_same(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, whatever their values."""
        pairs = zip(self._marks, weights, strict=True)
        return all(mark.weight() is weight for mark, weight in pairs)

    def are_unchanged(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors with the same values."""
        pairs = zip(self._marks, weights, strict=True)
        return self._writes == writes.count and all(m.is_unchanged(w) for m, w in pairs)


class UncountedWrites:
    """Counts the writes that torch does not count."""

    def __init__(self) -> None:
        self.count = 0


writes = UncountedWrites()


def weights_changed() -> None:
    """Announce that weights or buffers were written through ``tensor.data``.

    Compiled models then compute at their next call everything that they would have reused. Writes
    in place (``weight.copy_(...)``), other tensors in the place of a weight and adapters that peft
    swaps are seen without this.
    """
    writes.count += 1


def watch_hotswap() -> None:
    """Let peft's function that swaps an adapter announce it, if peft is in use."""
    module_name, name = _HOTSWAP
    if "peft" not in sys.modules:
        return
    module = importlib.import_module(module_name)
    swap: Callable[..., Any] | None = getattr(module, name, None)
    if swap is None or hasattr(swap, "announces_writes"):
        return

    @functools.wraps(swap)
    def swap_and_announce(*args: Any, **kwargs: Any) -> Any:
        try:
            return swap(*args, **kwargs)
        finally:
            weights_changed()

    swap_and_announce.announces_writes = True  # type: ignore[attr-defined]
    setattr(module, name, swap_and_announce)
