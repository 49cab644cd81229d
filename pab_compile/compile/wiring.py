"""Wiring: what the executor asks of the calls of a cut graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import PRELUDE, Piece

from .op import Start


def num_read(module: StepBranch | Piece) -> int | None:
    """How many inputs a branch reads to compute; None for all."""
    return module.num_inputs if isinstance(module, StepBranch) else None


def starts_of(module: StepBranch | Piece, inputs: Sequence[int]) -> tuple[Start | None, ...]:
    """The starts of a branch; empty if it has none."""
    if not isinstance(module, StepBranch) or not any(module.starts):
        return ()
    ends = map(ir.tensor, ir.outputs(module.compute.graph))
    return tuple(
        None
        if end is None or start is None
        else Start(inputs[start.position], start.dtype, end.dtype)
        for end, start in zip(ends, module.starts, strict=True)
    )


def made_by_python(call: fx.Node, register: Mapping[fx.Node, int]) -> tuple[int, ...]:
    """The registers of the tensors that a piece reads and Python made."""
    return tuple(register[node] for node in call.all_input_nodes if ir.is_made(node))


def feeds_preludes_only(value: fx.Node, cut_graph: fx.GraphModule) -> bool:
    """Whether only what runs once per generation reads a value."""
    modules = [
        cut_graph.get_submodule(str(user.target)) if user.op == "call_module" else None
        for user in value.users
    ]
    return all(isinstance(module, Piece) and module.sort == PRELUDE for module in modules)
