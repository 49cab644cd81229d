"""Measured: sizes that depend on values become inputs, so that every graph has static shapes.

With ``torch.compiler.config.capture_dynamic_output_shape_ops`` (or ``capture_scalar_outputs``)
Dynamo keeps ops in its graph whose output sizes are unknown until they run. Their outputs are
computed first, from the same inputs, and are further inputs of the rest of the graph::

    graph:   (text, mask) -> i = nonzero(mask); attend(text[i])

    values:  (text, mask) -> nonzero(mask)
    rest:    (text, mask, i) -> attend(text[i])

Numbers among them become constants of the captured graph, as dynamic sizes do. Equal values are
computed once. Sometimes a second computation of a value could differ: the value is written to in
place, a random op makes it, or it lies inside a region of autocast. Then the graph stays whole, and
is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes.errors import UnsupportedModelError

from . import ir
from .tracing import module_of
from .walk import feeding, in_order, picks


@dataclass(frozen=True, eq=False)
class Measured:
    """A Dynamo graph in two parts: the values that its sizes depend on, and the rest.

    Attributes:
        rest: the graph, with the further inputs after its own (``ir.is_eager``).
        values: from the inputs of the graph to the further inputs; None where there are none.
        examples: symbolic values of the further inputs.
    """

    rest: fx.GraphModule
    values: fx.GraphModule | None = None
    examples: tuple[Any, ...] = ()

    def extend(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The inputs of ``rest``, from those of the graph.

        Raises:
            UnsupportedModelError: the inputs are only described, so that they have no values.
        """
        if self.values is None:
            return args
        read = zip(ir.placeholders(self.values.graph), args, strict=True)
        if any(_is_only_described(arg) for node, arg in read if node.users):
            raise UnsupportedModelError(
                "Sizes in this model depend on values, which inputs that are only described (meta "
                "or fake tensors) do not have. Give it real inputs, and sizes that fit the machine."
            )
        return (*args, *self.values.forward(*args))


def measure(dynamo_graph: fx.GraphModule) -> Measured:
    """Split a Dynamo graph at the values that its sizes depend on. The graph is not modified."""
    graph = dynamo_graph.graph
    found = find_measured(graph)
    needed = in_order({*found, *feeding(found)})
    if not found or not _can_run_twice(graph, needed):
        return Measured(dynamo_graph)
    values, results = _graph_of_values(graph, found, needed)
    firsts: dict[fx.Node, fx.Node] = {}  # of equal ones, the first
    same = {node: firsts.setdefault(results[node], node) for node in found}
    rest = _graph_of_rest(graph, same, needed)
    return Measured(
        module_of(dynamo_graph, rest),
        module_of(dynamo_graph, values),
        tuple(ir.example(node) for node in firsts.values()),
    )


def find_measured(graph: fx.Graph) -> list[fx.Node]:
    """The values of a Dynamo graph whose sizes are known only when it runs, and such numbers.

    A slice up to such a number does not count: its size follows from the number.
    """
    found: list[fx.Node] = []
    for node in graph.nodes:
        symbols, sources = _symbols(node), node.all_input_nodes
        if symbols <= {symbol for source in sources for symbol in _symbols(source)}:
            continue
        if any(_symbols(source) and _is_number(source) for source in sources):
            continue
        several = isinstance(ir.example(node), (list, tuple))
        found += picks(node) if several else [node]
    return found


def _symbols(node: fx.Node) -> set[Any]:
    example = ir.example(node)
    known = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, list, tuple)
    return unknown_sizes(example) if isinstance(example, known) else set()


def _is_number(node: fx.Node) -> bool:
    return isinstance(ir.example(node), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _can_run_twice(graph: fx.Graph, needed: Sequence[fx.Node]) -> bool:
    """Whether some nodes give the same values alone as inside the graph."""
    if any(is_written_to(node) or _is_random(node) for node in needed):
        return False
    depth, within = 0, set[fx.Node]()
    for node in graph.nodes:
        depth += ir.is_call(node, "_enter_autocast") - ir.is_call(node, "_exit_autocast")
        if depth and node.op != "placeholder":
            within.add(node)
    return within.isdisjoint(needed)


def is_written_to(node: fx.Node) -> bool:
    """Whether an op of the graph changes the value, or other memory of its tensor, in place.

    Views share a count of the writes to their memory, and Dynamo runs every op on examples.
    """
    example = ir.example(node)
    parts = example if isinstance(example, (list, tuple)) else [example]
    return any(isinstance(part, torch.Tensor) and part._version > 0 for part in parts)


def _is_random(node: fx.Node) -> bool:
    name = str(node.target) if node.op == "call_method" else ir.op_name(node)
    packet = getattr(torch.ops.aten, name.rpartition(".")[2], None)
    overloads = [getattr(packet, each) for each in packet.overloads()] if packet else []
    tags = [*getattr(node.target, "tags", ()), *(tag for each in overloads for tag in each.tags)]
    return torch.Tag.nondeterministic_seeded in tags


def _graph_of_values(
    origin: fx.Graph, found: Sequence[fx.Node], needed: Sequence[fx.Node]
) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """The graph that yields each distinct value once, and the node in it for each given node."""
    graph = fx.Graph()
    copies = {node: graph.node_copy(node) for node in ir.placeholders(origin)}
    made: dict[tuple[Any, ...], fx.Node] = {}
    for node in needed:
        if node in copies:
            continue
        args, kwargs = fx.map_arg((node.args, node.kwargs), copies.__getitem__)
        key = (node.op, node.target, repr(args), repr(kwargs))
        if key not in made:
            made[key] = graph.node_copy(node, copies.__getitem__)
        copies[node] = made[key]
    graph.output(tuple(dict.fromkeys(copies[node] for node in found)))
    return graph, copies


def _graph_of_rest(
    origin: fx.Graph, same: dict[fx.Node, fx.Node], needed: Sequence[fx.Node]
) -> fx.Graph:
    """The graph with further inputs, without the nodes that only these inputs needed."""
    graph = fx.Graph()
    copies = {node: ir.copy_input(graph, node) for node in ir.placeholders(origin)}
    for node in dict.fromkeys(same.values()):
        copies[node] = graph.placeholder(node.name)
        ir.copy_facts(copies[node], node)
        ir.set_eager(copies[node], True)
    for node in origin.nodes:
        if node in same:
            copies[node] = copies[same[node]]
        elif node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    for node in reversed(needed):
        if node.op != "placeholder" and node not in same and not copies[node].users:
            graph.erase_node(copies[node])
    return graph


def _is_only_described(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_meta or hasattr(value, "fake_mode"))


def unknown_sizes(example: Any) -> set[Any]:
    """Symbols of sizes that depend on values, in the example of a node."""
    if isinstance(example, torch.Tensor) and all(type(size) is int for size in example.shape):
        return set()
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return set(free_unbacked_symbols(example))
