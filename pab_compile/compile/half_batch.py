"""Half of a batch: the program of the rows of one of two prompts, compiled at its first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pab_compile.dynamo import compiling
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.fused import put_together
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.parallel.half_rows import half_rows
from pab_compile.passes.program import Program
from pab_compile.runtime.cache_entry import Tensors

from .guidance import WHERE
from .lazy_function import Function
from .lower import PieceCompiler

if TYPE_CHECKING:
    from .request import Request

NOT_ANALYSED = "The graph of the model could not be analysed."
_SEVERAL_GRAPHS = "The forward breaks into several graphs."
_SEVERAL_RANKS = "Several ranks run it."
_SEVERAL_SIZES = "The program serves several sizes of requests."
_NOT_HALVED = WHERE + "half of the batch cannot be computed alone. {}"


class HalfBatch:
    """The two halves of a batch.

    Args:
        program: the captured graph with its axes, or why it cannot be halved.
        compiler: compiles the graphs of the halves.
    """

    def __init__(self, program: Program | str, compiler: PieceCompiler) -> None:
        self._program = program
        self._compiler = compiler
        self._known: dict[int, Function | str] = {}

    def why_not(self, which: int) -> str:
        """Why a half cannot be computed by itself; ``""`` if it can."""
        found = self._half(which)
        return _NOT_HALVED.format(found) if isinstance(found, str) else ""

    def run(self, which: int, inputs: Sequence[torch.Tensor]) -> Tensors:
        """The outputs of one half.

        Args:
            which: 0 for the first half, 1 for the second one.
            inputs: of the whole batch.
        """
        function = self._half(which)
        assert not isinstance(function, str), function
        return tuple(function(*inputs))

    def _half(self, which: int) -> Function | str:
        if which not in self._known:
            with compiling():
                if which not in self._known:
                    self._known[which] = self._compiled(which)
        return self._known[which]

    def _compiled(self, which: int) -> Function | str:
        if isinstance(self._program, str):
            return self._program
        try:
            graph = half_rows(self._program, which)
        except ShardingError as error:
            return str(error)
        put_together(graph)
        return self._compiler.compile(graph, structure_key(graph))


def halved(program: Program, request: Request) -> Program | str:
    """The graph of which one half of the batch may be computed, or why not.

    Args:
        program: the captured graph, before it was rewritten.
        request: says how it runs.
    """
    if not request.alone:
        return _SEVERAL_GRAPHS
    if request.team is not None:
        return _SEVERAL_RANKS
    if ir.open_sizes(program.graph_module) is not None:
        return _SEVERAL_SIZES
    return program if program.axes is not None else NOT_ANALYSED
