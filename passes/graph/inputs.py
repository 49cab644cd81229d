"""Inputs: which inputs of a Dynamo graph are tensors, and how the caller names them."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from . import ir
from .origin import short_path
from .tracing import module_of
from .wrapped import is_wrapped, plain_tensors

_PLACES = re.compile(r"(\[\d+\])+$")


_LAST_INDEX = re.compile(r"\[['\"]?([^\]'\"]+)['\"]?\]$|\.(\w+)$")
_KEYS = re.compile(r"\[['\"]([^\]'\"]+)['\"]\]")


@dataclass(frozen=True)
class Inputs:
    """The inputs of a Dynamo graph by type, and the values that a captured graph depends on.

    Numbers are integers (dynamic sizes, storage offsets) and scalar tensors of which only
    ``item()`` is used. Dynamo passes a dynamic ``float`` as such a tensor.

    Attributes:
        is_number: per input, whether it is a number.
        used: positions of the numbers that an op uses.
        resizable: positions of the tensors whose sizes or strides Dynamo leaves open.
        sources: per plain tensor, the caller's name of it, and whether it is a weight.
        holders: per plain tensor, the caller's names of the dicts that hold it.
        wrapped: position of a tensor that is made of others -> its name and type.
        measured: the plain tensors that were added to give the graph static shapes.
    """

    is_number: tuple[bool, ...]
    used: tuple[int, ...]
    resizable: tuple[int, ...]
    sources: tuple[tuple[str, bool], ...]
    holders: tuple[tuple[str, ...], ...]
    wrapped: Mapping[int, str]
    measured: frozenset[int] = frozenset()

    @staticmethod
    def of(dynamo_graph: fx.GraphModule, args: Sequence[Any]) -> Inputs:
        """Classify the inputs of a Dynamo graph."""
        nodes = ir.placeholders(dynamo_graph.graph)
        is_number = tuple(_is_number(n, arg) for n, arg in zip(nodes, args, strict=True))
        used = tuple(i for i, n in enumerate(nodes) if is_number[i] and n.users)
        resizable = tuple(i for i, n in enumerate(nodes) if _is_resizable(n))
        sources: list[tuple[str, bool]] = []
        holders: list[tuple[str, ...]] = []
        wrapped: dict[int, str] = {}
        measured: set[int] = set()
        for number, (node, arg) in enumerate(zip(nodes, args, strict=True)):
            if is_number[number]:
                continue
            name, constant = _describe_input(node, arg)
            if ir.is_eager(node):
                measured.add(len(sources))
            plain_names = [plain for plain, _ in plain_tensors(arg, name)]
            sources += [(plain, constant) for plain in plain_names]
            holders += [() if constant else _holders(node)] * len(plain_names)
            if is_wrapped(arg):
                wrapped[number] = f"{name!r} is a {type(arg).__name__}"
        found = tuple(sources), tuple(holders)
        return Inputs(is_number, used, resizable, *found, wrapped, frozenset(measured))

    def tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The inputs of the captured graph."""
        if self.wrapped:
            return [plain for arg in self.given_tensors(args) for _, plain in plain_tensors(arg)]
        return self.given_tensors(args)

    @functools.cached_property
    def callers(self) -> tuple[tuple[int, str], ...]:
        """Number and name of every plain tensor that is no weight. A model has few of them."""
        return tuple((i, name) for i, (name, constant) in enumerate(self.sources) if not constant)

    @functools.cached_property
    def _has_numbers(self) -> bool:
        return any(self.is_number)

    def given_tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors among Dynamo's inputs, as they are."""
        if not self._has_numbers:
            return list(args)
        return [arg for arg, number in zip(args, self.is_number, strict=True) if not number]

    def numbers(self, args: Sequence[Any], without: Collection[int]) -> tuple[Any, ...]:
        """The numbers that an op uses, but not those at some positions."""
        return tuple(_plain(args[i]) for i in self.used if i not in without)

    def specialisation(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """The values that the captured graph depends on: used numbers, open sizes and strides."""
        layouts = ((args[i].shape, args[i].stride()) for i in self.resizable)
        return (*(_plain(args[i]) for i in self.used), *layouts)


def _is_number(placeholder: fx.Node, value: Any) -> bool:
    if not isinstance(value, torch.Tensor):
        return True
    on_host = value.ndim == 0 and value.device.type == "cpu"
    return on_host and bool(placeholder.users) and all(map(_is_item, placeholder.users))


def _is_resizable(placeholder: fx.Node) -> bool:
    example = ir.example(placeholder)
    return isinstance(example, torch.Tensor) and any(
        isinstance(number, torch.SymInt) for number in (*example.shape, *example.stride())
    )


def _is_item(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "item"


def _plain(number: Any) -> Any:
    return number.item() if isinstance(number, torch.Tensor) else number


def with_constant_numbers(
    dynamo_graph: fx.GraphModule, inputs: Inputs, args: Sequence[Any]
) -> fx.GraphModule:
    """A Dynamo graph in which numbers are constants, so that all its inputs are tensors."""
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    values = zip(args, inputs.is_number, strict=True)
    for node in dynamo_graph.graph.nodes:
        if node.op == "placeholder":
            value, is_number = next(values)
            if is_number:
                known[node] = _plain(value)
                continue
        elif _is_item(node) and not isinstance(known[node.args[0]], fx.Node):
            known[node] = known[node.args[0]]
            continue
        known[node] = graph.node_copy(node, known.__getitem__)
    return module_of(dynamo_graph, graph)


def callers_name_of(node: fx.Node) -> str:
    """The caller's name of an input that is no weight."""
    return _callers_name(dynamo_name(node))


def dynamo_name(node: fx.Node) -> str:
    """Dynamo's expression for an input."""
    dynamo_source = getattr(node, "_dynamo_source", None)
    name = getattr(dynamo_source, "name", node.name)
    return str(name() if callable(name) else name)


def _describe_input(node: fx.Node, value: torch.Tensor) -> tuple[str, bool]:
    """The caller's name of an input, and whether it is a parameter or buffer."""
    name = dynamo_name(node)
    constant = isinstance(value, torch.nn.Parameter) or bool(
        re.search(r"_parameters\b|_buffers\b", name)
    )
    return (short_path(name) if constant else _callers_name(name)), constant


def _holders(node: fx.Node) -> tuple[str, ...]:
    """Names of the dicts in ``L['outer']['inner']['input'][0]``, the outermost first."""
    return tuple(_KEYS.findall(dynamo_name(node))[:-1])


def _callers_name(name: str) -> str:
    places = _PLACES.search(name)
    place = places.group() if places else ""
    match = _LAST_INDEX.search(name.removesuffix(place))
    return (match.group(1) or match.group(2)) + place if match else name
