"""Random inputs of the models, the same for the same seed."""

from __future__ import annotations

import torch


class Draw:
    """A stream of normal tensors.

    Args:
        seed: what the stream depends on.
        dtype: of every tensor.
    """

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._dtype = dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        """The next tensor of the stream."""
        return torch.randn(*shape, generator=self._generator).to(self._dtype)

    def integers(self, high: int, *shape: int) -> torch.Tensor:
        """Integers from 0 up to ``high``, exclusive."""
        return torch.randint(high, shape, generator=self._generator)


def at(batch: int, timestep: float) -> torch.Tensor:
    """The same timestep for every row, whole numbers as integers."""
    return torch.full((batch,), timestep)


def grid_ids(height: int, width: int, num_axes: int) -> torch.Tensor:
    """Positions of packed picture tokens, ``[height * width, num_axes]``: row and column first."""
    ids = torch.zeros(height, width, num_axes)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None, :]
    return ids.reshape(height * width, num_axes)
