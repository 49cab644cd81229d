"""Lazy functions: what the inner compiler makes of a piece, at the first call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from pab_compile.dynamo import compiling

Function = Callable[..., Sequence[torch.Tensor]]


class LazyFunction:
    """A function that is compiled at its first call.

    Args:
        compile_for: compiles it for the inputs of a call.
    """

    def __init__(self, compile_for: Callable[[Sequence[Any]], Function]) -> None:
        self._compile_for = compile_for
        self._compiled: Function | None = None

    def ready(self, args: Sequence[Any]) -> Function:
        """The compiled function. The first call compiles it for these inputs."""
        if self._compiled is None:
            with compiling():
                if self._compiled is None:
                    self._compiled = self._compile_for(args)
        return self._compiled

    def __call__(self, *args: Any) -> Sequence[torch.Tensor]:
        """Run it."""
        return (self._compiled or self.ready(args))(*args)
