"""Open whole: a graph in which nothing is reused, compiled as one piece for all open sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.fused import put_together
from pab_compile.passes.graph.join import Origin, Part
from pab_compile.passes.graph.open_sizes import OpenSizes, resize
from pab_compile.passes.graph.opening import Opener
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.size import at_size
from pab_compile.passes.graph.structure import structure_key
from pab_compile.report.explanation import Finding

from .lower import PieceCompiler
from .parts import placed_at
from .program import PlainProgram
from .request import Request
from .settings import Settings


def plain_part(part: Part, request: Request, settings: Settings, found: Finding) -> PlainProgram:
    """A captured graph of several in which nothing is reused.

    Raises:
        NotOpenError: the graph has open sizes, and cannot be opened.
    """
    whole = copy_graph(part.graph_module)  # inner compilers rewrite what they are given
    put_together(whole)
    opened: OpenSizes | None = ir.open_sizes(part.graph_module)
    if opened is None:
        return PlainProgram(part, settings.compiler.compile(whole, structure_key(whole)), found)
    function = OpenWhole(whole, settings.compiler, opened)

    def at_sizes(sizes: tuple[int, ...], origins: tuple[Origin | None, ...]) -> PlainProgram | None:
        if not opened.admits(sizes):
            return None
        resize(part.graph_module, sizes)
        flops = count_flops(part.graph_module.graph.nodes)
        reuse_flops = None if found.reuse_flops is None else flops
        shown = replace(found, total_flops=flops, reuse_flops=reuse_flops)
        placed = placed_at(part, sizes, origins, request.alone)
        return PlainProgram(placed, function.at(sizes), shown)

    program = PlainProgram(part, function.at(part.sizes), found)
    program.at_sizes = at_sizes
    return program


class OpenWhole:
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
