"""Join: the graphs of one forward become one graph, for analysis.

Dynamo may break a forward into several graphs. Then only the earlier graphs show what an input of a
later graph is: its axes, and when its value is known. So every graph is analysed together with the
graphs that its inputs come from::

    graph 0: (timestep) -> emb                 joined: (timestep, tokens) -> emb -> out
    graph 1: (tokens, emb) -> out

Only facts are transferred to the graph itself. That graph alone is rewritten and run.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from . import ir
from .open_sizes import OpenSizes, renumber
from .size import Size
from .tracing import module_of

_NAMELESS = ("___stack", "l___stack")  # a value on Python's stack when the graph broke


@dataclass(frozen=True)
class Given:
    """A tensor that the model's caller passes in, or that the model holds."""

    name: str


@dataclass(frozen=True)
class Made:
    """An output of an earlier graph of the same forward, by its position."""

    part: Part
    position: int


@dataclass(frozen=True)
class Eager:
    """A tensor of unknown origin: Python code made it between two graphs."""

    number: int


Origin = Given | Made | Eager


@dataclass(frozen=True, eq=False)
class Part:
    """One captured graph of a forward, with where its inputs come from.

    Attributes:
        graph_module: the captured graph.
        origins: one per placeholder; None for parameters and buffers.
        volatile: placeholders that may change between the graphs, unseen by this library.
        identity: distinguishes it from equal graphs at other places of the forward.
        sizes: the open sizes that it runs at, its own ones first; none if it has no open sizes.
        is_fixed: whether it serves one size only although Dynamo leaves sizes open. Each size has
            another such graph, so nothing behind it can serve further sizes.
        turn: how often it ran before in the forward with inputs of these origins.
    """

    graph_module: fx.GraphModule
    origins: tuple[Origin | None, ...]
    volatile: frozenset[int] = frozenset()
    identity: str = ""
    sizes: tuple[int, ...] = ()
    is_fixed: bool = False
    turn: int = 0

    @property
    def own_sizes(self) -> tuple[int, ...]:
        """Those of the sizes that are no earlier graph's."""
        opened: OpenSizes | None = ir.open_sizes(self.graph_module)
        return self.sizes[: opened.num_own] if opened is not None else ()


@dataclass(frozen=True, eq=False)
class Joined:
    """A graph together with the graphs that feed it.

    Attributes:
        graph_module: all of them in one.
        nodes: node of the last graph -> the node in its place.
    """

    graph_module: fx.GraphModule
    nodes: Mapping[fx.Node, fx.Node]


def join(last: Part) -> Joined:
    """Join a graph to the graphs that its inputs come from.

    Placeholders of one origin become one. An input whose shape or dtype differs from that of the
    output it should be cannot be the same tensor. It counts as an input of unknown origin.
    """
    if not any(isinstance(origin, Made) for origin in last.origins):
        graph = last.graph_module.graph
        for node, origin in zip(ir.placeholders(graph), last.origins, strict=True):
            _describe(node, origin)
        return Joined(last.graph_module, {node: node for node in graph.nodes})
    joiner = _Joiner(ir.open_sizes(last.graph_module))
    for part in earlier(last.origins):
        joiner.add_earlier(part)
    joiner.add(last)
    nodes = joiner.nodes[last]
    results = ir.output_node(last.graph_module.graph).args[0]
    joiner.graph.output(fx.map_arg(results, nodes.__getitem__))
    joiner.graph.eliminate_dead_code(ir.must_stay)
    own = set(nodes.values())
    for placeholder in ir.placeholders(joiner.graph):
        if not placeholder.users and placeholder not in own:
            joiner.graph.erase_node(placeholder)
    return Joined(module_of(joiner.root, joiner.graph), nodes)


def earlier(origins: Iterable[Origin | None]) -> list[Part]:
    """All graphs that feed a graph whose inputs have these origins, in an order of data flow."""
    ordered: list[Part] = []

    def visit(origins: Iterable[Origin | None]) -> None:
        for origin in origins:
            if isinstance(origin, Made) and origin.part not in ordered:
                visit(origin.part.origins)
                ordered.append(origin.part)

    visit(origins)
    return ordered


def earlier_sizes(origins: Iterable[Origin | None]) -> tuple[int, ...]:
    """The open sizes of all graphs that feed a graph, in the order of ``earlier``."""
    return tuple(size for part in earlier(origins) for size in part.own_sizes)


def are_fixed(origins: Iterable[Origin | None]) -> bool:
    """Whether a graph that feeds a graph serves one size only."""
    return any(part.is_fixed for part in earlier(origins))


def at_all_sizes(origins: Sequence[Origin | None]) -> Hashable:
    """The origins without the open sizes: equal for graphs of one way through a forward."""
    parts = earlier(origins)
    number = {part: index for index, part in enumerate(parts)}

    def described(origins: Iterable[Origin | None]) -> tuple[Hashable, ...]:
        return tuple(
            (number[each.part], each.position) if isinstance(each, Made) else each
            for each in origins
        )

    graphs = tuple((part.graph_module, described(part.origins)) for part in parts)
    return graphs, described(origins)


class _Joiner:
    """The joined graph so far.

    Args:
        opened: the open sizes of the last graph. The numbers of earlier ones follow from them too.
    """

    def __init__(self, opened: OpenSizes | None) -> None:
        self._opened = opened
        self._num_sizes = opened.num_own if opened is not None else 0
        self._number: Callable[[Size], int] | None = None
        self.graph = fx.Graph()
        self.root = torch.nn.Module()
        self._inputs: dict[Origin, fx.Node] = {}
        self.nodes: dict[Part, dict[fx.Node, fx.Node]] = {}
        self._last_input: fx.Node | None = None

    def add_earlier(self, part: Part) -> None:
        """Append a graph that runs at other sizes than those it was captured at, or at these."""
        if part.sizes:
            self._number = self._number_of(part)
        self.add(part)
        self._number = None

    def add(self, part: Part) -> None:
        """Append a graph."""
        nodes: dict[fx.Node, fx.Node] = {}
        inputs = ir.placeholders(part.graph_module.graph)
        for number, (node, origin) in enumerate(zip(inputs, part.origins, strict=True)):
            nodes[node] = self._input(node, origin)
            if number in part.volatile or ir.is_volatile(node):
                ir.set_volatile(nodes[node], True)
        for node in part.graph_module.graph.nodes:
            if node.op == "get_attr":
                self._hold(part, node, nodes)
            elif node.op == "call_function":
                nodes[node] = self._copied(node, nodes)
        self.nodes[part] = nodes

    def _copied(self, node: fx.Node, nodes: Mapping[fx.Node, fx.Node]) -> fx.Node:
        copy = self.graph.node_copy(node, nodes.__getitem__)
        if self._number is not None:
            renumber(copy, self._number)
        return copy

    def _number_of(self, part: Part) -> Callable[[Size], int]:
        """What takes the place of a size of an earlier graph."""
        theirs: OpenSizes = ir.open_sizes(part.graph_module)
        opened, first = self._opened, self._num_sizes
        if opened is None:
            return lambda size: theirs.at(size.expression, part.sizes)
        self._num_sizes += theirs.num_own
        own = opened.symbols[first : self._num_sizes]
        same = dict(zip(theirs.symbols, own, strict=False))
        return lambda size: opened.size(size.expression.xreplace(same))  # type: ignore[arg-type]

    def _input(self, node: fx.Node, origin: Origin | None) -> fx.Node:
        if isinstance(origin, Made):
            results = ir.output_node(origin.part.graph_module.graph).args[0]
            made = self.nodes[origin.part][results[origin.position]]  # type: ignore[index]
            if self._looks_like(made, node):
                return made
        if origin is None or isinstance(origin, Made):
            return self._placeholder(node, origin)
        if origin not in self._inputs:
            self._inputs[origin] = self._placeholder(node, origin)
        return self._inputs[origin]

    def _looks_like(self, made: fx.Node, node: fx.Node) -> bool:
        before, now = ir.tensor(made), ir.tensor(node)
        if before is None or now is None or before.dtype != now.dtype:
            return False
        sizes = ir.layouts(node)[0].sizes
        return tuple(before.shape) == tuple(int(self._renumbered(size)) for size in sizes)

    def _renumbered(self, number: int) -> int:
        if self._number is None or not isinstance(number, Size):
            return number
        return self._number(number)

    def _placeholder(self, node: fx.Node, origin: Origin | None) -> fx.Node:
        """A new input. All inputs come before all calls."""
        after = self._last_input
        point = self.graph.inserting_after(after) if after else self.graph.inserting_before(None)
        with point:
            copy = self._last_input = self._copied(node, {})
        copy.target = copy.name
        _describe(copy, origin)
        return copy

    def _hold(self, part: Part, node: fx.Node, nodes: dict[fx.Node, fx.Node]) -> None:
        name = f"part{len(self.nodes)}_{node.target}"
        held = getattr(part.graph_module, str(node.target))
        if ir.is_subgraph(node):
            self.root.add_module(name, held)
        else:
            self.root.register_buffer(name, held, False)
        nodes[node] = self.graph.get_attr(name)
        nodes[node].meta = dict(node.meta)


def _describe(placeholder: fx.Node, origin: Origin | None) -> None:
    if isinstance(origin, Given):
        ir.set_source(placeholder, origin.name)
    if isinstance(origin, Eager) and ir.source(placeholder).startswith(_NAMELESS):
        ir.set_source(placeholder, f"eager{origin.number}")
    ir.set_eager(placeholder, isinstance(origin, (Made, Eager)))
