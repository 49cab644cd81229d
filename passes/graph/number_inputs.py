"""Number inputs: a timestep that is a Python number becomes a tensor input of the graph.

Dynamo makes a number an input once it has seen two values of it. As a constant of the captured
graph it would make a program per step::

    (x, t: float)            tensor([t], dtype=float32) / 100
    (x, t: float64[])        t.to(float32).reshape([1]) / 100

Only numbers whose names sound like time are taken, and only if every use of them is known. It does
not help if the model calls ``torch.as_tensor``: Dynamo then compiles every value anew. A number,
and what Python computes from it, becomes a tensor without dimensions in double precision.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from . import ir
from .tracing import module_of

_CLOCK_WORDS = (
    "timestep",
    "timesteps",
    "time",
    "times",
    "t",
    "ts",
    "sigma",
    "sigmas",
    "noise_level",
)
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv)
_NUMBER = torch.float64


def sounds_like_time(name: str) -> bool:
    """Whether an input is called as timesteps are."""
    name = name.lower()
    return name in _CLOCK_WORDS or "timestep" in name or "time" in name.split("_")


def timely_numbers(arguments: Mapping[str, Any]) -> dict[str, float]:
    """The arguments of a call that are numbers and sound like time."""
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, (int, float))
        and not isinstance(value, bool)
        and sounds_like_time(name)
    }


@dataclass(frozen=True, eq=False)
class NumberInputs:
    """A Dynamo graph that takes some numbers as tensors.

    Attributes:
        graph_module: the graph.
        positions: of the inputs that are numbers for Dynamo and tensors for the graph.
    """

    graph_module: fx.GraphModule
    positions: frozenset[int] = frozenset()

    def examples(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """As ``tensors``, of symbolic inputs. Reading a symbol would make it a constant."""
        made = torch.empty((), dtype=_NUMBER)
        return tuple(made if i in self.positions else arg for i, arg in enumerate(args))

    def tensors(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs of the graph, from those of Dynamo's graph."""
        if not self.positions:
            return tuple(args)
        return tuple(
            torch.as_tensor(arg, dtype=_NUMBER) if number in self.positions else arg
            for number, arg in enumerate(args)
        )


def take_numbers(dynamo_graph: fx.GraphModule, name_of: Callable[[fx.Node], str]) -> NumberInputs:
    """Make a graph take the numbers that sound like time as tensors. It is not modified.

    Args:
        dynamo_graph: a graph of Dynamo.
        name_of: the caller's name of one of its inputs.
    """
    found = [
        (position, node)
        for position, node in enumerate(ir.placeholders(dynamo_graph.graph))
        if node.users and _is_number(node) and sounds_like_time(name_of(node))
    ]
    taken = [(position, node) for position, node in found if _is_convertible(node)]
    if not taken:
        return NumberInputs(dynamo_graph)
    graph = fx.Graph()
    numbers: set[fx.Node] = set()
    copies: dict[fx.Node, Any] = {}
    chosen = {node for _, node in taken}
    for node in dynamo_graph.graph.nodes:
        if node.op == "placeholder":
            copies[node] = ir.copy_input(graph, node)
            numbers |= {node} & chosen
        elif numbers.isdisjoint(node.all_input_nodes):
            copies[node] = graph.node_copy(node, copies.__getitem__)
        else:
            copies[node] = _converted(graph, node, copies, numbers)
    positions = frozenset(position for position, _ in taken)
    return NumberInputs(module_of(dynamo_graph, graph), positions)


def _is_number(placeholder: fx.Node) -> bool:
    example = ir.example(placeholder)
    if isinstance(example, torch.Tensor):  # Dynamo passes a number in a tensor, and reads it
        users = placeholder.users
        return example.ndim == 0 and all(map(_is_item, users))
    return isinstance(example, (torch.SymInt, torch.SymFloat))


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"


def _is_convertible(number: fx.Node) -> bool:
    """Whether every use of a number, and of numbers made of it, is known."""
    numbers, waiting = {number}, [number]
    while waiting:
        for user in waiting.pop().users:
            sort = _sort_of(user)
            if sort == "":
                return False
            if sort == "number" and user not in numbers:
                numbers.add(user)
                waiting.append(user)
    return True


def _sort_of(node: fx.Node) -> str:
    """How a node uses a number: it makes a ``number``, a ``tensor``, or is unknown: ``""``."""
    yields_tensor = isinstance(ir.example(node), torch.Tensor)
    if _is_item(node) or node.target is torch.sym_float:
        return "number"
    if node.target in _ARITHMETIC and len(node.args) == 2:
        return "arithmetic" if yields_tensor else "number"
    if node.op != "call_function":
        return ""
    known = {"dtype", "device"}
    if ir.is_call(node, "tensor") and node.kwargs.keys() <= known:
        return "tensor" if len(node.args) == 1 and _is_nested(node.args[0]) else ""
    if node.target is torch.full and node.kwargs.keys() <= known and len(node.args) == 2:
        size = node.args[0]
        plain = isinstance(size, (list, tuple)) and all(isinstance(n, int) for n in size)
        return "tensor" if plain and isinstance(node.args[1], fx.Node) else ""
    return ""


def _is_nested(value: Any) -> bool:
    """Whether a value is one number, in lists of one entry or none."""
    while isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return isinstance(value, fx.Node)


def _converted(
    graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, Any], numbers: set[fx.Node]
) -> fx.Node:
    """A use of a number, as a use of a tensor."""
    sort = _sort_of(node)
    if _is_item(node) or node.target is torch.sym_float:
        numbers.add(node)
        return copies[node.all_input_nodes[0]]
    if sort in ("number", "arithmetic"):
        if sort == "number":
            numbers.add(node)
        result = graph.node_copy(node, copies.__getitem__)
        if sort == "number":
            return result
        others = [ir.example(n) for n in node.all_input_nodes if n not in numbers]
        weak = all(other.ndim > 0 and other.is_floating_point() for other in others)
        # A number never decides the dtype beside a tensor; a tensor without dimensions might.
        return result if weak else _to(graph, result, ir.example(node))
    example = ir.example(node)
    (source,) = node.all_input_nodes
    made = _to(graph, copies[source], example)
    made.meta.update(node.meta)
    shape = tuple(example.shape)
    if not shape:
        return made
    method = "reshape" if math.prod(shape) == 1 else "expand"
    made = graph.call_method(method, (made, shape))
    return made if method == "reshape" else graph.call_method("clone", (made,))


def _to(graph: fx.Graph, node: fx.Node, like: torch.Tensor) -> fx.Node:
    return graph.call_method("to", (node,), {"dtype": like.dtype, "device": like.device})
