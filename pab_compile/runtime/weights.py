"""Weights: whether they still have the values that cached tensors were computed from.

torch counts writes to a tensor (its version). It does not count writes through ``tensor.data``. A
hot-swapped adapter is written like that, so ``watch_hotswap`` follows the function of peft that
does it. Any other such write must be announced with ``weights_changed()``.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import operator
import sys
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from pab_compile.dynamo import torchs_own_functions

_NUM_SAMPLES = 8
_HOTSWAP = ("peft.utils.hotswap", "hotswap_adapter_from_state_dict")


class WeightMarks:
    """The weights of one graph, as they were when something was computed from them.

    This is asked at every call, for as many weights as a model has. So plain lists are compared.
    Some elements of each weight are kept as bytes; on an accelerator they stay there. They are
    compared only if the memory moved, as that of an offloaded weight does.

    Args:
        weights: the weights, in the order of the graph's inputs.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._dead: list[object] = []
        self._refs = [weakref.ref(weight, self._dead.append) for weight in weights]
        self._ids = list(map(id, weights))
        self._has_version = [not weight.is_inference() for weight in weights]
        self._versions = self._versions_of(weights)
        self._addresses = _addresses_of(weights)
        self._samples = list(map(_sample, weights))
        self._writes = writes.count

    def are_same(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors, whatever their values."""
        return not self._dead and list(map(id, weights)) == self._ids

    def are_unchanged(self, weights: Sequence[torch.Tensor]) -> bool:
        """Whether these are the same tensors with the same values."""
        if self._writes != writes.count or not self.are_same(weights):
            return False
        if self._versions_of(weights) != self._versions:
            return False
        now = _addresses_of(weights)
        return now == self._addresses or all(
            address == before or _read(_sample(weight)) == _read(sample)
            for weight, address, before, sample in zip(
                weights, now, self._addresses, self._samples, strict=True
            )
        )

    def _versions_of(self, weights: Sequence[torch.Tensor]) -> list[int]:
        """The versions; 0 for inference tensors, which have none."""
        if all(self._has_version):
            return list(map(_version_of, weights))
        both = zip(weights, self._has_version, strict=True)
        return [weight._version if has_version else 0 for weight, has_version in both]


MarksOf = Callable[[Sequence[torch.Tensor]], WeightMarks]
"""Gives the marks of weights as they are now."""


_version_of = operator.attrgetter("_version")


def _addresses_of(weights: Sequence[torch.Tensor]) -> list[int]:
    return [weight.data_ptr() for weight in weights]


def _read(sample: torch.Tensor | bytes) -> bytes:
    if isinstance(sample, bytes):
        return sample
    with torchs_own_functions():
        here = sample.cpu()
        return ctypes.string_at(here.data_ptr(), here.numel())


def _sample(weight: torch.Tensor) -> torch.Tensor | bytes:
    with torchs_own_functions():  # the numbers in memory, whatever they stand for
        flat = weight.detach().reshape(-1)
        stride = max(1, flat.numel() // _NUM_SAMPLES)
        sample = flat[::stride][:_NUM_SAMPLES].clone().view(torch.uint8)
    return _read(sample) if weight.device.type == "cpu" else sample


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
