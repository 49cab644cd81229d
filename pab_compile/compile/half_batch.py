"""Half of a batch: the program of the rows of one of two prompts, compiled at its first use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pab_compile.dynamo import compiling
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.fused import put_together
from pab_compile.passes.graph.open_sizes import NotOpenError, OpenSizes
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.parallel.half_rows import half_rows
from pab_compile.passes.program import Program
from pab_compile.runtime.cache_entry import Tensors

from .guidance import WHERE
from .lazy_function import Function
from .lower import PieceCompiler
from .open_graph import OpenGraph

if TYPE_CHECKING:
    from .request import Request

NOT_ANALYSED = "The graph of the model could not be analysed."
_SEVERAL_GRAPHS = "The forward breaks into several graphs."
_SEVERAL_RANKS = "Several ranks run it."
_OTHER_SIZES = "It was made for requests of other sizes, and does not fit these."
_NOT_HALVED = WHERE + "half of the batch cannot be computed alone. {}"


class HalfBatch:
    """The two halves of a batch.

    Args:
        program: the captured graph with its axes, or why it cannot be halved.
        compiler: compiles the graphs of the halves.
        sizes: the open sizes of the calls; None for those that the graph was captured at.
        known: the halves that were compiled for any size.
    """

    def __init__(
        self,
        program: Program | str,
        compiler: PieceCompiler,
        sizes: tuple[int, ...] | None = None,
        known: dict[int, Function | OpenGraph | str] | None = None,
    ) -> None:
        self._program = program
        self._compiler = compiler
        self._known = {} if known is None else known
        opened = None if isinstance(program, str) else ir.open_sizes(program.graph_module)
        self._opened: OpenSizes | None = opened
        self._sizes = opened.given if opened is not None and sizes is None else sizes
        self._own: dict[int, Function] = {}

    def at(self, sizes: tuple[int, ...]) -> HalfBatch:
        """The halves of batches of other sizes. What is compiled for all sizes is the same."""
        return HalfBatch(self._program, self._compiler, sizes, self._known)

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
        found = self._known[which]
        if not isinstance(found, OpenGraph):
            return found
        assert self._opened is not None
        assert self._sizes is not None
        if not self._opened.admits(self._sizes):
            return _OTHER_SIZES
        return self._own.setdefault(which, found.at(self._sizes))

    def _compiled(self, which: int) -> Function | OpenGraph | str:
        if isinstance(self._program, str):
            return self._program
        try:
            graph = half_rows(self._program, which)
        except ShardingError as error:
            return str(error)
        put_together(graph)
        if self._opened is None:
            return self._compiler.compile(graph, structure_key(graph))
        try:
            return OpenGraph(graph, self._compiler, self._opened)
        except NotOpenError as error:
            return f"The program serves several sizes of requests, and {error}."


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
    return program if program.axes is not None else NOT_ANALYSED
