"""Written graphs: a graph of torch's own ops as text, and back.

The text has everything that the passes read of a traced graph: ops, arguments, fake values, places
in the model and in its source. A graph with anything else has no text. The text is JSON, so reading
one runs no code.
"""

from __future__ import annotations

import base64
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx

from . import ir
from .constants import is_fake
from .tracing import fake_mode, function_name, module_of

_NAMESPACES = ("aten", "prims", "pab_compile")
_MOST_CONSTANT_BYTES = 2**20
_CONSTANTS: dict[str, Any] = {
    str(value): value
    for value in (
        *(each for each in vars(torch).values() if isinstance(each, torch.dtype)),
        *(torch.strided, torch.preserve_format, torch.contiguous_format, torch.channels_last),
        torch.channels_last_3d,
    )
}
_PLAIN = (type(None), bool, int, str)


class NotWritableError(Exception):
    """A graph has something that has no text."""


def write(graph_module: fx.GraphModule) -> str:
    """A traced graph as text.

    Raises:
        NotWritableError: it has something else than torch's own ops and plain tensors.
    """
    return _text(_Writer(graph_module, _op_name).whole())


def describe(graph_module: fx.GraphModule, tensors: Sequence[torch.Tensor]) -> str:
    """Text of all that a trace of Dynamo's graph depends on, but for torch itself.

    Args:
        graph_module: Dynamo's graph, with graphs inside it.
        tensors: its inputs.

    Raises:
        NotWritableError: it calls something else than torch's own functions, or has other tensors.
    """
    first: dict[int, int] = {}
    inputs = []
    for number, tensor in enumerate(tensors):
        storage = tensor.untyped_storage()._cdata if not is_fake(tensor) else -1
        if storage == -1 or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise NotWritableError(f"an input that is a {type(tensor).__name__}")
        flags = [tensor.is_conj(), tensor.is_neg(), tensor.is_inference(), tensor.requires_grad]
        alias = first.setdefault(storage if storage else -number - 2, number)
        inputs.append([type(tensor).__name__, _layout_of(tensor), flags, alias])
    return _text([_Writer(graph_module, _called_name).whole(), inputs])


def read(text: str) -> fx.GraphModule:
    """The graph of a text that ``write`` made.

    Raises:
        ValueError: it is no such text. So do ``KeyError``, ``TypeError`` and ``AttributeError``.
    """
    found = json.loads(text)
    root = torch.nn.Module()
    for name, constant in found["constants"].items():
        root.register_buffer(name, _read_constant(constant), persistent=False)
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    with fake_mode():
        values = [_read_layout(layout) for layout in found["layouts"]]
        for op, name, target, args, kwargs, facts in found["nodes"]:
            if op not in ("placeholder", "get_attr", "call_function", "output"):
                raise ValueError(f"a node {op}")
            called = _op_of(target) if op == "call_function" else target
            given = _decoded(args, nodes, ()), _decoded(kwargs, nodes, ())
            node = graph.create_node(op, called, *given, name=name)
            node.meta = _facts(facts, values, found["stacks"], found["lines"])
            nodes.append(node)
    graph.lint()
    result = module_of(root, graph)
    if found["mutated"] is not None:
        ir.set_mutated_inputs(result, tuple(map(int, found["mutated"])))
    return result


class _Writer:
    """Writes one graph. Layouts and places, of which many are equal, are written once each."""

    def __init__(self, graph_module: fx.GraphModule, name_of: Callable[[Any], str]) -> None:
        self._root = graph_module
        self._name_of = name_of
        self._stacks: dict[str, int] = {}
        self._lines: dict[str, int] = {}
        self._layouts: dict[str, int] = {}
        self._index: dict[fx.Node, int] = {}
        self._constants: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        """The graph, to be printed as JSON."""
        nodes = [self._node(node) for node in self._root.graph.nodes]
        return {
            "nodes": nodes,
            "stacks": [json.loads(stack) for stack in self._stacks],
            "lines": list(self._lines),
            "layouts": [json.loads(layout) for layout in self._layouts],
            "constants": self._constants,
            "mutated": list(ir.mutated_inputs(self._root)) or None,
        }

    def _node(self, node: fx.Node) -> list[Any]:
        target = str(node.target)
        if node.op == "call_function":
            target = self._name_of(node.target)
        elif node.op in ("get_attr", "call_module"):
            self._keep(target)
        args = self._encoded(tuple(node.args)), self._encoded(dict(node.kwargs))
        self._index[node] = len(self._index)
        stack = node.meta.get("nn_module_stack") or {}
        # Keys of the stack are addresses, which no pass reads.
        stack_text = _text([[str(path), str(what)] for path, what, *_ in stack.values()])
        facts = [
            self._value(ir.value(node)),
            self._stacks.setdefault(stack_text, len(self._stacks)),
            self._lines.setdefault(node.meta.get("stack_trace") or "", len(self._lines)),
            ir.is_volatile(node),
        ]
        return [node.op, node.name, target, *args, facts]

    def _keep(self, name: str) -> None:
        """Write what the graph holds under a name."""
        held: Any = self._root
        for part in name.split("."):
            held = getattr(held, part)
        if isinstance(held, fx.GraphModule) and self._name_of is _called_name:
            self._constants[name] = _Writer(held, self._name_of).whole()
        elif _is_plain(held) and "." not in name:
            if held.nbytes > _MOST_CONSTANT_BYTES or held.layout != torch.strided:
                raise NotWritableError(f"a large constant {name}")
            raw = held.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            self._constants[name] = [_layout_of(held), base64.b64encode(raw).decode()]
        else:
            raise NotWritableError(f"a {type(held).__name__} under {name}")

    def _value(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"v": self._layouts.setdefault(_text(_layout_of(value)), len(self._layouts))}
        if isinstance(value, (tuple, list)):
            return {"l" if isinstance(value, list) else "t": [self._value(each) for each in value]}
        return self._encoded(value)

    def _encoded(self, value: Any) -> Any:
        """An argument, to be printed as JSON."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, fx.Node):
            return {"n": self._index[value]}
        if isinstance(value, float):
            return {"f": value.hex()}
        if isinstance(value, (tuple, list)):
            kind = "l" if isinstance(value, list) else "t"
            return {kind: [self._encoded(each) for each in value]}
        if isinstance(value, dict):
            return {"d": [[self._encoded(k), self._encoded(each)] for k, each in value.items()]}
        if isinstance(value, slice):
            return {"s": [self._encoded(x) for x in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if _CONSTANTS.get(str(value)) is value:
            return {"c": str(value)}
        raise NotWritableError(f"an argument of the type {type(value).__name__}")


def _is_plain(held: Any) -> TypeGuard[torch.Tensor]:
    return type(held) in (torch.Tensor, torch.nn.Parameter)


def _decoded(value: Any, nodes: Sequence[fx.Node], values: Sequence[torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        if type(value) in _PLAIN:
            return value
        raise ValueError(f"an argument {value!r}")
    ((kind, held),) = value.items()
    if kind == "n":
        return nodes[held]
    if kind == "f":
        return float.fromhex(held)
    if kind == "device":
        return torch.device(held)
    if kind == "c":
        return _CONSTANTS[held]
    if kind == "d":
        return {_decoded(k, nodes, ()): _decoded(each, nodes, ()) for k, each in held}
    if kind == "v":
        return values[held]
    inside = [_decoded(each, nodes, values) for each in held]
    return {"l": list, "t": tuple, "s": lambda parts: slice(*parts)}[kind](inside)


def _facts(
    written: Sequence[Any],
    values: Sequence[torch.Tensor],
    stacks: Sequence[Any],
    lines: Sequence[str],
) -> dict[str, Any]:
    value, stack, line, volatile = written
    facts: dict[str, Any] = {"val": _decoded(value, (), values)}
    if stacks[stack]:
        entries = enumerate(stacks[stack])
        facts["nn_module_stack"] = {str(n): (path, what) for n, (path, what) in entries}
    if lines[line]:
        facts["stack_trace"] = lines[line]
    return {**facts, **ir.volatile_fact(volatile)}


def _layout_of(tensor: torch.Tensor) -> list[Any]:
    sizes: list[Any] = [*tensor.shape, *tensor.stride(), tensor.storage_offset()]
    if tensor.layout != torch.strided or not all(type(number) is int for number in sizes):
        raise NotWritableError("a tensor that is not strided, or of open sizes")
    places = [list(tensor.shape), list(tensor.stride()), tensor.storage_offset()]
    return [*places, str(tensor.dtype), str(tensor.device)]


def _read_layout(layout: Sequence[Any]) -> torch.Tensor:
    shape, stride, offset, dtype, device = layout
    made = {"dtype": _CONSTANTS[dtype], "device": device}
    if not offset:
        return torch.empty_strided(shape, stride, **made)
    reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1
    return torch.empty(offset + reach, **made).as_strided(shape, stride, offset)


def _read_constant(constant: Sequence[Any]) -> torch.Tensor:
    (shape, stride, _, dtype, device), raw = constant
    data = bytearray(base64.b64decode(raw))
    held = torch.frombuffer(data, dtype=_CONSTANTS[dtype]) if data else torch.empty(0)
    found = torch.empty_strided(shape, stride, dtype=_CONSTANTS[dtype])
    return found.copy_(held.to(found.dtype).reshape(shape)).to(device)


def _op_name(target: Any) -> str:
    if target is operator.getitem:
        return "getitem"
    if isinstance(target, torch._ops.OpOverload) and target.namespace in _NAMESPACES:
        return str(target)
    raise NotWritableError(f"a call of {target}")


def _op_of(name: str) -> Any:
    if name == "getitem":
        return operator.getitem
    namespace, packet, overload = name.split(".")
    if namespace not in _NAMESPACES:
        raise ValueError(f"an op {name}")
    found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"an op {name}")
    return found


def _called_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return _op_name(target)
    name = function_name(target)
    if name is None:
        raise NotWritableError(f"a call of {target}")
    return name


def _text(what: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(what, separators=(",", ":"))
