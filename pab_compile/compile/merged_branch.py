"""Merged branch: the branch of sites that cache one sum. It runs piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from pab_compile.ranks.sends import at_any_size

from .lazy_function import Function
from .op import Op as GraphOp
from .open_function import SizedFunction

AnyOp = TypeVar("AnyOp", "Op", GraphOp)


@dataclass(frozen=True, eq=False)
class Op:
    """One call of a piece.

    Attributes:
        key: hash of all that the function depends on.
        function: the compiled piece.
        inputs: registers that the function reads.
        outputs: (position in the result, register to write).
        frees: registers that no later op reads.
    """

    key: str
    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]


class MergedBranch:
    """A row of pieces as a function.

    Args:
        ops: the calls of the pieces, in order.
        num_registers: how many values there are, of which the first are the inputs.
        returned: registers of the results.
    """

    def __init__(self, ops: Sequence[Op], num_registers: int, returned: Sequence[int]) -> None:
        self._ops = ops
        self._num_registers = num_registers
        self._returned = returned

    @property
    def key(self) -> str:
        """Hash of all that it depends on."""
        return "\n".join(
            [*(f"{op.key} {list(op.inputs)}" for op in self._ops), str(self._returned)]
        )

    def at(self, sizes: tuple[int, ...]) -> MergedBranch:
        """The same branch at other sizes."""
        ops = [at_sizes(op, sizes) for op in self._ops]
        return MergedBranch(ops, self._num_registers, self._returned)

    def __call__(self, *inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        """Run the pieces in order."""
        registers: list[torch.Tensor | None] = [None] * self._num_registers
        registers[: len(inputs)] = inputs
        for op in self._ops:
            results = op.function(*[registers[i] for i in op.inputs])
            for position, register in op.outputs:
                registers[register] = results[position]
            for register in op.frees:
                registers[register] = None
        return [registers[i] for i in self._returned]  # type: ignore[misc]


def at_sizes(op: AnyOp, sizes: tuple[int, ...]) -> AnyOp:
    """A call of a program, for a program of other sizes."""
    if not isinstance(op.function, (SizedFunction, MergedBranch)):
        return op
    function = op.function.at(sizes)
    if isinstance(op, GraphOp) and op.exchanged:
        op = replace(op, exchanged=at_any_size(op.exchanged))
    return replace(op, key=function.key, function=function)
