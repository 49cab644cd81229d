"""Merged branch: the branch of sites that cache one sum. It runs piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.rewrite.pieces import Piece

from .lower import Function, PieceCompiler


@dataclass(frozen=True, eq=False)
class _Op:
    """One call of a piece: registers to read, (position, register) to write, registers to free."""

    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]


class MergedBranch:
    """A graph of pieces as a function. Equal pieces are compiled once.

    Args:
        cut_graph: a graph of pieces only, which returns a tuple.
        compiler: compiles the pieces.
    """

    def __init__(self, cut_graph: fx.GraphModule, compiler: PieceCompiler) -> None:
        nodes = list(cut_graph.graph.nodes)
        register = {node: index for index, node in enumerate(nodes)}
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        self._num_registers = len(nodes)
        self._returned = [register[node] for node in ir.output_node(cut_graph.graph).args[0]]  # type: ignore[union-attr,index]
        self._num_inputs = len(ir.placeholders(cut_graph.graph))
        self._ops: list[_Op] = []
        for node in cut_graph.graph.find_nodes(op="call_module"):
            piece = cut_graph.get_submodule(str(node.target))
            assert isinstance(piece, Piece), node.target
            dying = [n for n in node.all_input_nodes if last_use[n] is node]
            self._ops.append(
                _Op(
                    compiler.compile(piece.compute, structure_key(piece.compute)),
                    tuple(register[n] for n in node.all_input_nodes),
                    tuple((int(u.args[1]), register[u]) for u in node.users),  # type: ignore[arg-type]
                    tuple(register[n] for n in dying),
                )
            )

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
