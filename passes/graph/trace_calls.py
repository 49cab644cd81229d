"""Tracing call by call: equal calls of Dynamo's graph are traced once.

A model has many equal blocks. Their calls differ in the tensors alone, and tensors of one layout
become the same ops. So the ops of the first such call are copied::

    %h1 = gelu(%x1)    ->    aten.gelu(%x1)     # traced
    %h2 = gelu(%x2)    ->    aten.gelu(%x2)     # copied: %x2 has the layout of %x1

A call may write to a tensor. Later calls then take the new value. That is all as long as no other
tensor that is still needed shares the memory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from .tracing import (
    Decompositions,
    has_new_layout,
    is_written_to,
    memory_of,
    module_of,
    trace_function,
)

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_CALLS = ("call_function", "call_method")
_OFTEN = 3
"""Calls per line of the model from which on this is faster than one trace of all calls."""
_FACTS = ("nn_module_stack", "stack_trace")
_CONSTANTS = (int, float, str, torch.Size, torch.dtype, torch.device)
_OPTIONS = (*_CONSTANTS, complex, type(None), type(...), torch.memory_format, torch.layout)
_NUMBER = re.compile(r"_\d+$")
_PYTHON = ("_operator", "math", "builtins")


class _NotAloneError(Exception):
    """What a call does cannot be told from the layouts of its arguments."""


@dataclass(frozen=True)
class _Place:
    """Stands for a tensor: the number of an operand, or of a result."""

    number: int


@dataclass(frozen=True)
class _Ops:
    """What a call becomes.

    Attributes:
        graph_module: its placeholders are the operands. It returns the outputs: the tensors of the
            results, then the new values of the operands that are written to.
        results: the results, with places for tensors.
        written: number of an operand -> of the output that is its new value.
        alike: per output the number of an operand that it shares memory with, if there is one.
    """

    graph_module: fx.GraphModule
    results: Any
    written: Mapping[int, int]
    alike: Sequence[int | None]


def trace_calls(
    static_graph: fx.GraphModule,
    fake_args: Sequence[FakeTensor],
    decompositions: Decompositions | None = None,
) -> fx.GraphModule | None:
    """Trace a graph that has no tensors of its own, and that writes to none of its inputs.

    The result is that of ``trace_pure``, but for dead code.

    Returns:
        The traced graph. None for any other graph, for one that needs a tensor after it wrote to
        another one in the same memory, and for one whose calls seldom repeat.
    """
    calls = [node for node in static_graph.graph.nodes if node.op in _CALLS]
    if not fake_args or not _repeat(calls) or any(map(_is_private, calls)):
        return None
    tracer = _CallTracer(static_graph, fake_args[0].fake_mode, decompositions)
    placeholders = iter(fake_args)
    try:
        for node in static_graph.graph.nodes:
            if node.op == "placeholder":
                tracer.add_input(node, next(placeholders))
            elif node.op == "output":
                return tracer.finished(node.args[0])
            else:
                tracer.add_call(node)
    except (_NotAloneError, RuntimeError, NotImplementedError):
        return None
    raise AssertionError("a graph without an output")


def _repeat(calls: Sequence[fx.Node]) -> bool:
    """Whether lines of the model run often, as those of equal blocks do."""
    lines = {(node.target, node.meta.get("stack_trace")) for node in calls}
    return len(calls) >= _OFTEN * len(lines)


def _is_private(node: fx.Node) -> bool:
    """Whether a call may change what later calls do, as those that enter a mode or a vmap."""
    return getattr(node.target, "__name__", "").startswith("_")


class _CallTracer:
    """Builds the traced graph. A tensor is known by the node that gives it."""

    def __init__(
        self,
        static_graph: fx.GraphModule,
        mode: FakeTensorMode,
        decompositions: Decompositions | None,
    ) -> None:
        self._mode = mode
        self._decompositions = decompositions
        self._place = {node: place for place, node in enumerate(static_graph.graph.nodes)}
        self._graph = fx.Graph()
        self._root = torch.nn.Module()
        self._number = itertools.count()  # of a constant
        self._known: dict[fx.Node, Any] = {}
        self._traced: dict[Any, _Ops] = {}
        self._memory: dict[fx.Node, int] = {}  # 0: that of an input
        self._in_memory: dict[int, list[fx.Node]] = {0: []}  # the calls whose results are there

    def add_input(self, node: fx.Node, value: FakeTensor) -> None:
        """Take over a placeholder."""
        made = self._known[node] = self._graph.placeholder(f"arg{len(self._known)}_1")
        made.meta["val"] = value
        self._memory[made] = 0

    def add_call(self, node: fx.Node) -> None:
        """Take over a call.

        Raises:
            _NotAloneError: it is none, or what it does cannot be told.
        """
        if node.op not in _CALLS:
            raise _NotAloneError
        args, kwargs = self._given(node.args), self._given(node.kwargs)
        if _is_python(node, args):
            picked = self._known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
            fx.map_arg(picked, lambda tensor: self._in_memory[self._memory[tensor]].append(node))
            return
        operands: dict[fx.Node, _Place] = {}
        place_of = lambda value: _placed(value, operands)  # noqa: E731
        args, kwargs = map_aggregate(args, place_of), map_aggregate(kwargs, place_of)
        values = [operand.meta["val"] for operand in operands]
        key = (node.op, node.target, _key(args), _key(kwargs), *map(_layout, values))
        ops = self._traced.get(key)
        if ops is None:
            ops = self._traced[key] = self._trace(_function(node), args, kwargs, values)
        outputs = self._copy(ops, list(operands), node)
        self._remember(node, ops, list(operands), outputs)
        for number, output in ops.written.items():
            self._write(list(operands)[number], outputs[output], node)
        self._known[node] = _filled(ops.results, outputs)

    def finished(self, results: Any) -> fx.GraphModule:
        """The traced graph."""
        self._graph.output(self._given(results))
        return module_of(self._root, self._graph)

    def _given(self, value: Any) -> Any:
        return fx.map_arg(value, self._known.__getitem__)

    def _trace(
        self, function: Callable[..., Any], args: Any, kwargs: Any, values: Sequence[FakeTensor]
    ) -> _Ops:
        found: list[Any] = []

        def call(*tensors: torch.Tensor) -> list[torch.Tensor]:
            outputs: list[torch.Tensor] = []
            returned = function(*_filled(args, tensors), **_filled(kwargs, tensors))
            written: dict[int, int] = {}
            for number, tensor in enumerate(tensors):
                if has_new_layout(tensor):
                    raise _NotAloneError
                if is_written_to(tensor):
                    written[number] = len(written)
            is_statement = returned is None and written
            results = None if is_statement else _results(returned, outputs)
            written = {number: len(outputs) + place for number, place in written.items()}
            outputs += [tensors[number] for number in written]
            memory = {memory_of(tensor): number for number, tensor in enumerate(tensors)}
            alike = [memory.get(memory_of(output)) for output in outputs]
            found.append((results, written, alike))
            return outputs

        traced = trace_function(call, _apart(values), self._mode, self._decompositions)
        return _Ops(traced, *found[-1])

    def _remember(
        self, node: fx.Node, ops: _Ops, operands: Sequence[fx.Node], outputs: Sequence[fx.Node]
    ) -> None:
        """Note in which memory the outputs of a call are."""
        for number, output in zip(ops.alike, outputs, strict=True):
            new = self._place[node]
            memory = new if number is None else self._memory[operands[number]]
            self._memory.setdefault(output, memory)
            self._in_memory.setdefault(memory, []).append(node)

    def _write(self, before: fx.Node, after: fx.Node, node: fx.Node) -> None:
        """A call gives a tensor a new value.

        Raises:
            _NotAloneError: something else that is still needed shares its memory.
        """
        memory = self._memory[before]
        if memory == 0:
            raise _NotAloneError
        for other in self._in_memory[memory]:
            if other is node:
                continue
            if self._known[other] is before:
                self._known[other] = after
            elif any(self._place[user] > self._place[node] for user in other.users):
                raise _NotAloneError

    def _copy(self, ops: _Ops, operands: Sequence[fx.Node], origin: fx.Node) -> Any:
        """Copy what a call became; returns its outputs."""
        known: dict[fx.Node, Any] = {}
        rest = iter(operands)
        facts = {name: origin.meta[name] for name in _FACTS if name in origin.meta}
        for node in ops.graph_module.graph.nodes:
            if node.op == "placeholder":
                known[node] = next(rest)
            elif node.op == "output":
                return fx.map_arg(node.args[0], known.__getitem__)
            else:
                target = node.target
                if node.op == "get_attr":
                    target = self._keep(getattr(ops.graph_module, str(target)))
                given = fx.map_arg((node.args, node.kwargs), known.__getitem__)
                name = _NUMBER.sub("", node.name)
                made = known[node] = self._graph.create_node(node.op, target, *given, name=name)
                made.meta = {**facts, **{k: v for k, v in node.meta.items() if k == "val"}}
        raise AssertionError("a graph without an output")

    def _keep(self, constant: torch.Tensor) -> str:
        """Hold a constant; returns its name."""
        name = f"_tensor_constant{next(self._number)}"
        self._root.register_buffer(name, constant, persistent=False)
        return name


def _apart(values: Sequence[FakeTensor]) -> list[Any]:
    """The values, with a view in the place of one that is there twice. Copies share their value."""
    seen: set[int] = set()
    return [v.detach() if id(v) in seen else seen.add(id(v)) or v for v in values]


def _is_python(node: fx.Node, args: Sequence[Any]) -> bool:
    """Whether a call is one of Python's, of no tensor. It may be of a tuple that holds tensors."""
    is_pythons = getattr(node.target, "__module__", None) in _PYTHON
    return is_pythons and not any(isinstance(arg, fx.Node) for arg in args) and not node.kwargs


def _function(node: fx.Node) -> Callable[..., Any]:
    target = node.target
    if callable(target):
        return target
    return lambda tensor, *args, **kwargs: getattr(tensor, str(target))(*args, **kwargs)


def _placed(value: Any, operands: dict[fx.Node, _Place]) -> Any:
    if isinstance(value, fx.Node):
        return operands.setdefault(value, _Place(len(operands)))
    return value


def _filled(value: Any, tensors: Sequence[Any]) -> Any:
    """A value with tensors in their places."""
    if isinstance(value, torch.Size):
        return value
    return map_aggregate(value, lambda x: tensors[x.number] if isinstance(x, _Place) else x)


def _results(value: Any, outputs: list[torch.Tensor]) -> Any:
    """What a call returned, with places for tensors, which are added to the outputs.

    Raises:
        _NotAloneError: it is nothing that only depends on the layouts of the arguments.
    """
    if isinstance(value, torch.Tensor):
        outputs.append(value)
        return _Place(len(outputs) - 1)
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, (tuple, list)):
        inside = [_results(each, outputs) for each in value]
        if hasattr(value, "_fields"):
            return type(value)(*inside)
        return tuple(inside) if isinstance(value, tuple) else inside
    raise _NotAloneError


def _key(value: Any) -> Any:
    """What tells one argument from another."""
    if isinstance(value, _Place):
        return value
    if isinstance(value, (float, complex)):
        return type(value), repr(value)  # 0.0 is not -0.0
    if isinstance(value, _OPTIONS):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return type(value), tuple(map(_key, value))
    if isinstance(value, Mapping):
        return tuple((name, _key(each)) for name, each in value.items())
    if isinstance(value, slice):
        return slice, _key((value.start, value.stop, value.step))
    raise _NotAloneError


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    """All that ops depend on of a tensor but its values."""
    sizes = (*tensor.shape, *tensor.stride(), tensor.storage_offset())
    if not all(type(size) is int for size in sizes):
        raise _NotAloneError
    flags = tensor.requires_grad, tensor.is_conj(), tensor.is_neg()
    is_weight = isinstance(tensor, torch.nn.Parameter)
    return (*sizes, tensor.dtype, tensor.device, tensor.layout, *flags, is_weight)
