"""Open whole: a graph in which nothing is reused, compiled as one piece for all open sizes."""

from __future__ import annotations

from dataclasses import replace

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.flops import count_flops
from pab_compile.passes.graph.fused import put_together
from pab_compile.passes.graph.join import Origin, Part
from pab_compile.passes.graph.open_sizes import OpenSizes, resize
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.structure import structure_key
from pab_compile.report.explanation import Finding

from .open_graph import OpenGraph
from .parts import placed_at
from .request import Request
from .runnable import PlainProgram
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
    function = OpenGraph(whole, settings.compiler, opened)

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
