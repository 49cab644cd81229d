"""Lets torch's counter of operations count flex attention. It knows the formula, but not the op."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils import flop_counter


@contextmanager
def counting_flex_attention() -> Iterator[None]:
    """Where the counter counts it. Called without a compiler, it must not compile itself."""
    mode = flop_counter._FlopCounterMode
    handle = mode._handle_higher_order_ops

    def handle_flex_too(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func is not torch.ops.higher_order.flex_attention:
            return handle(self, func, types, args, kwargs)
        return self.counter._count_flops(func, func(*args, **kwargs), args, kwargs)

    with mock.patch.object(mode, "_handle_higher_order_ops", handle_flex_too):
        yield
