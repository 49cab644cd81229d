"""Open functions: pieces that were compiled for all sizes which they are right for.

The inner compiler may meet conditions while it compiles a piece. Sizes that do not fulfil them get
a function of their own, and so do inputs of other strides than the graph foretells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph.opening import OpenPiece

from .lazy_function import Function, LazyFunction

_MAX_KEYS = 64


class OpenFunction:
    """The function of an opened piece.

    Args:
        piece: the piece.
        function: takes the open sizes, then tensors.
        compile_fixed: compiles a graph module of tensors only, under a key.
    """

    def __init__(
        self,
        piece: OpenPiece,
        function: LazyFunction,
        compile_fixed: Callable[[fx.GraphModule, str], Function],
    ) -> None:
        self._piece = piece
        self._function = function
        self._compile_fixed = compile_fixed
        self._keys: dict[tuple[int, ...], str] = {}

    def at(self, sizes: tuple[int, ...]) -> SizedFunction:
        """The function of tensors only, for these sizes."""
        return SizedFunction(self, sizes)

    def key_at(self, sizes: tuple[int, ...]) -> str:
        """Hash of all that the function depends on at these sizes, however it was captured."""
        if sizes not in self._keys:
            if len(self._keys) >= _MAX_KEYS:
                self._keys.clear()
            self._keys[sizes] = self._piece.key_at(sizes)
        return self._keys[sizes]

    def admits(self, sizes: tuple[int, ...]) -> bool:
        """Whether the compiled function is right for these sizes."""
        return self._piece.opened.admits(sizes)

    def ready(self, sizes: tuple[int, ...], tensors: Sequence[torch.Tensor]) -> Function | None:
        """The compiled function, if it is right for these sizes and tensors."""
        function = self._function.ready((*sizes, *tensors))
        opened, examples = self._piece.opened, self._piece.examples[len(sizes) :]
        foretold = (tuple(opened.resized(each.stride(), sizes)) for each in examples)
        fits = all(map(_is_laid_out, tensors, foretold))
        return function if fits and self.admits(sizes) else None

    def fixed(self, sizes: tuple[int, ...]) -> Function:
        """A function that is compiled for these sizes alone."""
        return self._compile_fixed(self._piece.closed_at(sizes), f"{self._piece.key} {sizes}")


class SizedFunction:
    """A piece at the sizes of one program.

    Args:
        owner: the piece's function for all sizes.
        sizes: the sizes of the program.
    """

    def __init__(self, owner: OpenFunction, sizes: tuple[int, ...]) -> None:
        self._owner = owner
        self._sizes = sizes
        self._open: Function | None = None
        self._fixed: Function | None = None

    @property
    def key(self) -> str:
        """Hash of all that it depends on."""
        return self._owner.key_at(self._sizes)

    def at(self, sizes: tuple[int, ...]) -> SizedFunction:
        """The same piece at other sizes."""
        return self._owner.at(sizes)

    def __call__(self, *tensors: torch.Tensor) -> Sequence[torch.Tensor]:
        """Run the piece."""
        if self._fixed is None:
            if self._open is None:
                self._open = self._owner.ready(self._sizes, tensors)
            if self._open is not None and self._owner.admits(self._sizes):
                return self._open(*self._sizes, *tensors)
            self._fixed = self._owner.fixed(self._sizes)
        return self._fixed(*tensors)


def _is_laid_out(tensor: torch.Tensor, strides: Sequence[Any]) -> bool:
    """Whether a tensor has these strides. Those of a dimension of size 1 do not matter."""
    shown = zip(tensor.shape, tensor.stride(), strides, strict=True)
    return all(size == 1 or stride == expected for size, stride, expected in shown)
