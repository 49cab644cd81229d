"""Graphs as text made for reading: the form of goldens, dumps and error messages.

Each node is one line. The graph of a submodule is indented below its call::

    %x = input hidden_states : f32[6, 24, 8]
    %w = weight proj.weight : f32[8, 8]
    %spatial_0 = branch spatial_0(%x, %w) : (f32[6, 24, 8])  # reuse: load cache | otherwise:
        %linear = aten.linear(%x, %w) : f32[6, 24, 8]
        return %linear
    %out = %spatial_0[0] : f32[6, 24, 8]
    return %out

The text depends on the graph alone. It has no overload, device or address, so a golden from a CPU
is valid for a GPU.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from . import ir

AxisNames = Callable[[fx.Node], Sequence[str] | None]

_INDENT = "    "
_REUSE_NOTE = "reuse: load cache | otherwise:"
_NOISE = ("device", "layout", "pin_memory")  # keyword arguments that no pass looks at
_DTYPES = {
    torch.bool: "b8",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def format_graph(graph_module: fx.GraphModule, names: AxisNames | None = None) -> str:
    """Print a captured graph, one line per node.

    A ``call_module`` whose module has a graph module as attribute ``compute`` is a branch. Its
    graph is indented below the call, after the module's ``note`` if it has one. Inputs of that
    graph are left out where they have the name of the value that is passed.

    Args:
        graph_module: the graph; not modified.
        names: gives the names of the dimensions of a node's tensor, which are printed instead of
            its sizes (``f32[b*t, h*w, c]``). Where it returns None, sizes are printed.

    Returns:
        The text, ending in a newline.
    """
    return "\n".join(_lines(graph_module, names, None)) + "\n"


def diff_text(before: str, after: str) -> str:
    """Unified diff of two printed graphs, without file names and line numbers.

    Each hunk starts with ``@@``; one line of context. Empty when nothing changed.
    """
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=1, lineterm="")
    body = list(lines)[2:]  # the first two are file names
    return "".join(("@@" if line.startswith("@@ ") else line.rstrip()) + "\n" for line in body)


def format_node(node: fx.Node, names: AxisNames | None = None) -> str:
    """Print one node as in ``format_graph``, without the graph of a submodule. For messages."""
    return _line(node, names)


def _lines(
    graph_module: fx.GraphModule, names: AxisNames | None, passed: Mapping[str, str] | None
) -> Iterator[str]:
    """Lines of a graph. ``passed`` maps inputs to what the caller passes; None at the top."""
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" and passed is not None and node.name in passed:
            given = passed[node.name]
            if given != f"%{node.name}":
                yield f"%{node.name} = {given}{_type(node, names)}"
            continue
        branch = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        inner = getattr(branch, "compute", None)
        if not isinstance(inner, fx.GraphModule):
            yield _line(node, names)
            continue
        note = getattr(branch, "note", _REUSE_NOTE)
        word = getattr(branch, "sort", "branch")
        yield f"{_line(node, names, callee=f'{word} {node.target}')}  # {note}"
        yield from (_INDENT + line for line in _lines(inner, names, _bound(inner, node)))


def _bound(inner: fx.GraphModule, node: fx.Node) -> dict[str, str]:
    """What each input of a branch is bound to: positional arguments first, then by keyword."""
    inputs = [placeholder.name for placeholder in ir.placeholders(inner.graph)]
    given = [_value(argument) for argument in node.args]
    by_keyword = {name: _value(argument) for name, argument in node.kwargs.items()}
    return dict(zip(inputs, given, strict=False)) | by_keyword


def _line(node: fx.Node, names: AxisNames | None, callee: str = "") -> str:
    if node.op == "output":
        returned = node.args[0] if isinstance(node.args[0], (list, tuple)) else node.args
        return "return " + (", ".join(_value(value) for value in returned) or "()")
    return f"%{node.name} = {_expression(node, callee)}{_type(node, names)}"


def _expression(node: fx.Node, callee: str) -> str:
    if node.op == "placeholder":
        return f"{'weight' if ir.is_constant_input(node) else 'input'} {ir.source(node)}"
    if node.op == "get_attr":
        return f"attribute {node.target}"
    if ir.is_getitem(node):
        return f"{_value(node.args[0])}[{_value(node.args[1])}]"
    arguments = [_value(argument) for argument in node.args]
    keywords = {name: arg for name, arg in node.kwargs.items() if name not in _NOISE}
    arguments += [f"{name}={_value(argument)}" for name, argument in keywords.items()]
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join(arguments[1:])})"
    return f"{callee or _callee(node)}({', '.join(arguments)})"


def _callee(node: fx.Node) -> str:
    if node.op == "call_module":
        return f"module {node.target}"
    namespace = ir.op_namespace(node)
    return f"{namespace}.{ir.op_name(node)}" if namespace else ir.op_name(node)


def _value(value: Any) -> str:
    """An argument in short: ``%x``, ``[1, %n]``, ``0.5``, ``f32``, ``'gelu'``, ``1:4``."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, slice):
        parts = [value.start, value.stop] + ([] if value.step is None else [value.step])
        return ":".join("" if part is None else _value(part) for part in parts)
    if isinstance(value, torch.dtype):
        return _dtype(value)
    if isinstance(value, (torch.memory_format, torch.layout)):
        return str(value).removeprefix("torch.")
    if type(value) is int and value == sys.maxsize:  # how ATen writes an open slice
        return "end"
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return repr(value)
    if isinstance(value, (torch.device, torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(value)
    # Not repr: it may hold an address.
    return "..." if value is Ellipsis else getattr(value, "__name__", type(value).__name__)


def _type(node: fx.Node, names: AxisNames | None) -> str:
    """`` : f32[2, 8]``, or nothing where the node's value is not known."""
    val = ir.value(node)
    axis_names = names(node) if names is not None else None
    text = _value_type(val, axis_names)
    return f" : {text}" if text else ""


def _value_type(val: Any, axis_names: Sequence[str] | None = None) -> str:
    if isinstance(val, torch.Tensor):
        return _tensor_type(val, axis_names)
    if isinstance(val, (list, tuple)):
        types = [_value_type(item) or "None" for item in val]
        if len(types) > 1 and len(set(types)) == 1:
            return f"{len(types)} x {types[0]}"
        return f"({', '.join(types)})"
    for scalar, name in (
        ((bool, torch.SymBool), "bool"),
        ((int, torch.SymInt), "int"),
        ((float, torch.SymFloat), "float"),
    ):
        if isinstance(val, scalar):
            return name
    return ""


def _tensor_type(tensor: torch.Tensor, axis_names: Sequence[str] | None) -> str:
    dims = [str(size) for size in tensor.shape] if axis_names is None else list(axis_names)
    assert len(dims) == tensor.dim(), f"{len(dims)} axis names for {tensor.dim()} dimensions"
    return f"{_dtype(tensor.dtype)}[{', '.join(dims)}]"


def _dtype(dtype: torch.dtype) -> str:
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))
