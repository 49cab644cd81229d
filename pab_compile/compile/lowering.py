"""Lowering of a cut graph: every piece becomes a function and a key, in the order of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.opening import Opener, OpenPiece
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import PRELUDE, Piece

from .lazy_function import Function, LazyFunction
from .lower import PieceCompiler
from .merged_branch import MergedBranch, Op
from .open_function import OpenFunction
from .untraced import UntracedBranch


class Lowered(NamedTuple):
    """A piece as a function.

    Attributes:
        key: hash of all that the function depends on.
        function: takes and returns tensors.
    """

    key: str
    function: Function


class Lowering:
    """Lowers the pieces of one graph. They must come in the order of the graph.

    Args:
        cut_graph: a graph of pieces and branches only.
        compiler: compiles the pieces.
        opener: opens the pieces, if the graph has open sizes.
        given: the inputs of the graph with symbolic sizes; None to read them from it.
    """

    def __init__(
        self,
        cut_graph: fx.GraphModule,
        compiler: PieceCompiler,
        opener: Opener | None = None,
        given: Sequence[Any] | None = None,
    ) -> None:
        self._compiler = compiler
        self._opener = opener
        self._values: dict[fx.Node, Any] = {}
        if opener is not None and given is None:
            self._values = opener.inputs_of(cut_graph)
        elif opener is not None and given is not None:
            self._values = dict(zip(ir.placeholders(cut_graph.graph), given, strict=True))

    def lower(self, call: fx.Node, module: StepBranch | Piece) -> Lowered:
        """Lower the piece of one call."""
        if isinstance(module, UntracedBranch):
            function = self._compiler.compile(module.compute, module.key)
            return Lowered(module.key, module.watched(function))
        inputs = self._inputs_of(call, module)
        if isinstance(module, StepBranch) and module.site.parts:
            return self._merged(call, module.compute, inputs)
        piece = self._opened(call, module.compute, inputs)
        is_prelude = isinstance(module, Piece) and module.sort == PRELUDE
        if piece is not None:
            function = _uncompiled(piece) if is_prelude else self._compiler.compile_open(piece)
            sized = function.at(piece.opened.given)
            return Lowered(sized.key, sized)
        key = structure_key(module.compute)
        if is_prelude:  # it runs too seldom to be worth compiling
            return Lowered(key, module.compute.forward)
        return Lowered(key, self._compiler.compile(module.compute, key))

    def _merged(self, call: fx.Node, compute: fx.GraphModule, inputs: Sequence[Any]) -> Lowered:
        """A branch of merged sites: it runs piece by piece."""
        inside = Lowering(compute, self._compiler, self._opener, inputs)
        nodes = list(compute.graph.nodes)
        register = {node: index for index, node in enumerate(nodes)}
        last_use = {source: node for node in nodes for source in node.all_input_nodes}
        ops: list[Op] = []
        for node in compute.graph.find_nodes(op="call_module"):
            piece = compute.get_submodule(str(node.target))
            assert isinstance(piece, Piece), node.target
            key, function = inside.lower(node, piece)
            dying = [n for n in node.all_input_nodes if last_use[n] is node]
            ops.append(
                Op(
                    key,
                    function,
                    tuple(register[n] for n in node.all_input_nodes),
                    tuple((int(u.args[1]), register[u]) for u in node.users),  # type: ignore[arg-type]
                    tuple(register[n] for n in dying),
                )
            )
        returned: Sequence[fx.Node] = ir.output_node(compute.graph).args[0]  # type: ignore[assignment]
        self._record(call, [inside._values.get(node) for node in returned])
        branch = MergedBranch(ops, len(nodes), [register[node] for node in returned])
        return Lowered(branch.key, branch)

    def _inputs_of(self, call: fx.Node, module: StepBranch | Piece) -> Sequence[Any]:
        if self._opener is None:
            return ()
        number = module.num_inputs if isinstance(module, StepBranch) else None
        return [self._values[node] for node in call.all_input_nodes[:number]]

    def _opened(
        self, call: fx.Node, compute: fx.GraphModule, inputs: Sequence[Any]
    ) -> OpenPiece | None:
        if self._opener is None:
            return None
        piece = self._opener.piece(compute, inputs)
        self._record(call, piece.outputs if piece else self._opener.values_of(compute, inputs))
        return piece

    def _record(self, call: fx.Node, outputs: Sequence[Any]) -> None:
        for user in call.users:
            self._values[user] = outputs[int(user.args[1])]  # type: ignore[arg-type]


def _uncompiled(piece: OpenPiece) -> OpenFunction:
    lazy = LazyFunction(lambda _: piece.graph_module.forward)
    return OpenFunction(piece, lazy, lambda fixed, _: fixed.forward)
