"""Half batches: only the rows of one prompt run, if that gives what the whole batch gives.

Plans leave out half of a batch at some steps. The half is cut from all inputs that have a row per
row of the latents. Whether such inputs are all that depends on the batch is unknown. So the first
time both the whole batch and the half run, and their outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

Leaves = tuple[Any, ...]


class HalfBatches:
    """Runs half of a batch alone where that is the same."""

    def __init__(self) -> None:
        self._are_alike: dict[Any, bool] = {}

    def run(
        self,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rows: int,
        which: int,
    ) -> tuple[Leaves, float]:
        """The output of one half of the batch, and the model calls that it took.

        Args:
            forward: of the model.
            args: of the call.
            kwargs: of the call.
            rows: of the latents.
            which: the half, 0 or 1.
        """
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        key = which, tuple((tuple(x.shape), x.dtype) for x in tensors)
        if self._are_alike.get(key, False):
            return _alone(forward, args, kwargs, rows, which), 0.5
        whole = tuple(pytree.tree_leaves(forward(*args, **kwargs)))
        half = half_of(whole, which)
        if key in self._are_alike:
            return half, 1.0
        try:
            alone = _alone(forward, args, kwargs, rows, which)
        except Exception:  # it is the model's, which may need the whole batch
            alone = ()
        self._are_alike[key] = _are_close(alone, half)
        return half, 1.5


def half_of(leaves: Sequence[Any], which: int) -> Leaves:
    """One half of the rows of every tensor."""
    return tuple(x.chunk(2)[which] if isinstance(x, torch.Tensor) else x for x in leaves)


def _alone(forward: Callable[..., Any], args: Any, kwargs: Any, rows: int, which: int) -> Leaves:
    def cut(leaf: Any) -> Any:
        has_rows = isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and len(leaf) == rows
        return leaf.chunk(2)[which] if has_rows else leaf

    own_args, own_kwargs = pytree.tree_map(cut, (args, kwargs))
    return tuple(pytree.tree_leaves(forward(*own_args, **own_kwargs)))


def _are_close(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether outputs differ by no more than rounding."""
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if not isinstance(other, torch.Tensor):
            continue
        if not isinstance(one, torch.Tensor) or one.shape != other.shape:
            return False
        if other.is_floating_point():
            limit = torch.finfo(other.dtype).eps ** 0.5
            difference = (one.double() - other.double()).norm()
            if not bool(difference <= limit * other.double().norm()):
                return False
        elif not torch.equal(one, other):
            return False
    return True
