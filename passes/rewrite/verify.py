"""Verify: checks the invariants of every rewrite on the graph itself."""

from __future__ import annotations

from collections import Counter

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.origin import source_line
from pab_compile.passes.sites.binding import Binding

from .broadcast import StepBranch
from .pieces import PRELUDE, WATCHED, Piece


def verify(after: fx.GraphModule, before: fx.GraphModule) -> None:
    """Check a rewritten graph against the one it came from.

    - The graph is well formed. Inputs and outputs are the same in number, order and layout.
    - Only single tensors pass between submodules. A multi-output op stays with its getitems.
    - Submodules are branches or pieces. Each returns a tuple and calls no other, except the pieces
      of a branch of merged sites.
    - A branch has an output. It contains no random or mutating op, so leaving it out changes only
      its value.
    - A prelude reads no value that changes from step to step. A watched piece reads tensors that
      Python made, and no other such value.
    - No op of the graph was lost or doubled.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    _check_form("the graph", after)
    _check_signature(after, before)
    for node in after.graph.find_nodes(op="call_module"):
        module = after.get_submodule(str(node.target))
        if not isinstance(module, (StepBranch, Piece)):
            raise InvariantError(
                f"{node.target}: a {type(module).__name__} is not a branch or piece"
            )
        for source in node.all_input_nodes:
            if ir.tensor(source) is None:
                raise InvariantError(f"{node.target} reads {source.name}, which is not one tensor")
        parts = _parts(module)
        _check_submodule(str(node.target), module.compute, bool(parts))
        for name, part in parts:
            _check_submodule(name, part.compute, False)
        if isinstance(module, StepBranch):
            for graph_module in (module.compute, *(part.compute for _, part in parts)):
                _check_no_effect(node, graph_module)
        elif module.sort in (PRELUDE, WATCHED):
            _check_early(node, may_read_made=module.sort == WATCHED)
    old, new = count_ops(before), count_ops(after)
    if old != new:
        raise InvariantError(f"ops were lost: {dict(old - new)}, or doubled: {dict(new - old)}")


def count_ops(graph_module: fx.GraphModule) -> Counter[str]:
    """Op calls of a graph and its submodules by name, without picks of a submodule's values."""
    graph = graph_module.graph
    total = Counter(ir.op_name(node) for node in ir.calls(graph) if ir.is_plain_call(node))
    for node in graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, (StepBranch, Piece)):
            total += count_ops(module.compute)
    return total


def _check_form(name: str, graph_module: fx.GraphModule) -> None:
    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        raise InvariantError(f"{name} is not well formed: {error}") from error


def _check_signature(after: fx.GraphModule, before: fx.GraphModule) -> None:
    for what, find in (("inputs", ir.placeholders), ("outputs", ir.outputs)):
        old = [ir.shape(node) for node in find(before.graph)]
        new = [ir.shape(node) for node in find(after.graph)]
        if old != new:
            raise InvariantError(f"the {what} changed from {old} to {new}")


def _parts(module: StepBranch | Piece) -> list[tuple[str, Piece]]:
    """The pieces of a branch of merged sites; empty before it is cut."""
    if not isinstance(module, StepBranch) or not module.site.parts:
        return []
    named = module.compute.named_children()
    return [(name, part) for name, part in named if isinstance(part, Piece)]


def _check_submodule(name: str, compute: fx.GraphModule, may_call: bool) -> None:
    _check_form(name, compute)
    if not isinstance(ir.output_node(compute.graph).args[0], tuple):
        raise InvariantError(f"{name} does not return a tuple")
    if not ir.outputs(compute.graph):
        raise InvariantError(f"{name} returns nothing, so nothing can use it")
    nested = list(compute.graph.find_nodes(op="call_module"))
    if nested and not may_call:
        raise InvariantError(f"{name} calls another submodule, {nested[0].target}")


def _check_no_effect(node: fx.Node, graph_module: fx.GraphModule) -> None:
    for inner in ir.calls(graph_module.graph):
        if ir.has_effect(inner):
            raise InvariantError(
                f"{node.target}: {inner.target} has an effect besides its value, so the branch "
                f"must not be left out ({source_line(inner)})"
            )


def _check_early(node: fx.Node, may_read_made: bool) -> None:
    late = [n for n in node.all_input_nodes if (ir.binding(n) or Binding.CONSTANT) > Binding.PROMPT]
    if may_read_made:
        late = [n for n in late if n.op != "placeholder" or not ir.is_made(n)]
    if late:
        raise InvariantError(f"{node.target} reads {late[0].name}, which changes at every step")
