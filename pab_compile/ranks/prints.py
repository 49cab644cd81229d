"""Prints: short numbers that differ if tensors differ. Ranks compare them instead of the tensors.

The print of an input is a weighted sum over all of its bits. That of a weight is one over some of
its elements: an adapter or a missing part of a checkpoint changes most of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from pab_compile.dynamo import torchs_own_functions

NUM_SAMPLES = 64
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FACTOR = 0x9E3779B1


def prints_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The prints of tensors by name. They are read from each device at once."""
    return _read({name: _sum_of(tensor) for name, tensor in tensors.items()})


def sampled_prints(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The prints of some elements of weights by name."""
    return _read({name: _sum_of(_sampled(weight)) for name, weight in weights.items()})


def _read(sums: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Numbers as text. The numbers of one device are read together."""
    found: dict[str, int] = {}
    for device in dict.fromkeys(number.device for number in sums.values()):
        here = [name for name, number in sums.items() if number.device == device]
        found |= zip(here, torch.stack([sums[name] for name in here]).tolist(), strict=True)
    return {name: _short(found[name]) for name in sums}


def _short(number: int) -> str:
    return f"{(number ^ number >> 32) & 0xFFFFFFFF:08x}"


def _sampled(tensor: torch.Tensor) -> torch.Tensor:
    with torchs_own_functions():
        flat = tensor.detach().reshape(-1)
        stride = max(1, flat.numel() // NUM_SAMPLES)
        return flat[::stride][:NUM_SAMPLES]


def _sum_of(tensor: torch.Tensor) -> torch.Tensor:
    """A weighted sum of the bits, modulo 2**64; on the tensor's device."""
    with torchs_own_functions(), torch.no_grad():
        plain = tensor.detach()
        plain = torch.view_as_real(plain) if plain.is_complex() else plain
        flat = plain.contiguous().reshape(-1)
        bits = flat.view(_INTEGERS[flat.element_size()]).to(torch.int64)
        factors = torch.arange(1, 2 * bits.numel(), 2, device=bits.device) * _FACTOR
        return (bits * factors).sum()
