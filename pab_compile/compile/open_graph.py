"""Open graphs: a graph without branches, compiled as one piece for all open sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.open_sizes import OpenSizes
from pab_compile.passes.graph.opening import Opener
from pab_compile.passes.graph.size import at_size
from pab_compile.passes.graph.structure import structure_key

from .lower import PieceCompiler


class OpenGraph:
    """The function of a whole graph for open sizes.

    Args:
        whole: the graph; modified. What it returns besides tensors are numbers, such as sizes.
        compiler: compiles it.
        opened: its open sizes.

    Raises:
        NotOpenError: it cannot be opened.
    """

    def __init__(self, whole: fx.GraphModule, compiler: PieceCompiler, opened: OpenSizes) -> None:
        output = ir.output_node(whole.graph)
        self._returned: Sequence[Any] = output.args[0]  # type: ignore[assignment]
        output.args = (tuple(each for each in self._returned if isinstance(each, fx.Node)),)
        whole.recompile()
        opener = Opener(opened)
        known = opener.inputs_of(whole)
        piece = opener.piece(whole, [known[node] for node in ir.placeholders(whole.graph)])
        self._open = compiler.compile_open(piece) if piece is not None else None
        self._closed = compiler.compile(whole, structure_key(whole)) if piece is None else None

    def at(self, sizes: tuple[int, ...]) -> Callable[..., Sequence[Any]]:
        """What computes the graph at these sizes."""
        function = self._open.at(sizes) if self._open is not None else self._closed
        assert function is not None
        returned = [
            (isinstance(each, fx.Node), None if isinstance(each, fx.Node) else at_size(each, sizes))
            for each in self._returned
        ]

        def run(*tensors: torch.Tensor) -> Sequence[Any]:
            found = iter(function(*tensors))
            return tuple(next(found) if is_made else always for is_made, always in returned)

        return run
