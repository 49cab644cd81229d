"""Facts about nodes of a captured graph, read and written through accessors only.

The IR is a functional, pre-dispatch ATen graph (``torch.fx``). Every call node has a fake tensor
(or a list of them) as its value; placeholders keep the order of the compiled function's inputs.
No other module reads or writes ``node.meta``.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

_SOURCE = "pab_source"
_HOLDERS = "pab_holders"
_CONSTANT = "pab_constant"
_EAGER = "pab_eager"
_VOLATILE = "pab_volatile"
_MADE = "pab_made"
_MUTATED = "pab_mutated"
_CASTS = "pab_casts"
_BINDING = "pab_binding"
_AXES = "pab_axes"
_FUSED = "pab_fused"
_LAYOUTS = "pab_layouts"
_COUNTED = "pab_counted"
_OPEN_SIZES = "pab_open_sizes"
_SENDS = "pab_sends"


class Layout(NamedTuple):
    """Sizes and strides of a tensor. Their numbers remember how they follow from open sizes."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def value(node: fx.Node) -> Any:
    """Fake value of a node: a tensor, a list of tensors, a number, or None where unknown."""
    return node.meta.get("val")


def example(node: fx.Node) -> Any:
    """Dynamo's symbolic value of a node of its graph, or None where there is none."""
    return node.meta.get("example_value")


def copy_input(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A copy of one of Dynamo's inputs in another graph. It keeps Dynamo's name of the input."""
    copy = graph.node_copy(node)
    copy._dynamo_source = getattr(node, "_dynamo_source", None)  # type: ignore[attr-defined]
    return copy


def copy_facts(target: fx.Node, origin: fx.Node) -> None:
    """Copy all facts about a node to a node that a pass created in its place."""
    target.meta = dict(origin.meta)


def set_value(node: fx.Node, val: Any) -> None:
    """Record the fake value of a node that a pass created."""
    node.meta["val"] = val
    node.meta.pop(_LAYOUTS, None)
    node.meta.pop(_COUNTED, None)


def open_sizes(graph_module: fx.GraphModule) -> Any:
    """The open sizes of a captured graph (``passes.graph.open_sizes``), or None."""
    return graph_module.meta.get(_OPEN_SIZES)


def set_open_sizes(graph_module: fx.GraphModule, opened: Any) -> None:
    """Record the open sizes of a captured graph."""
    graph_module.meta[_OPEN_SIZES] = opened


def tensor(node: fx.Node) -> torch.Tensor | None:
    """Fake tensor of a node, or None when its value is not one tensor."""
    val = value(node)
    return val if isinstance(val, torch.Tensor) else None


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """Sizes of the tensor that a node yields, or None when its value is not one tensor."""
    val = tensor(node)
    if val is None:
        return None
    return layouts(node)[0].sizes if _LAYOUTS in node.meta else tuple(map(int, val.shape))


def layouts(node: fx.Node) -> list[Layout]:
    """Sizes and strides of the tensor(s) that a node yields, one or several."""
    if _LAYOUTS in node.meta:
        return node.meta[_LAYOUTS]
    return [Layout(tuple(t.shape), tuple(t.stride())) for t in tensors(node)]


def set_layouts(node: fx.Node, found: list[Layout]) -> None:
    """Record sizes and strides of the tensor(s) that a node yields."""
    node.meta[_LAYOUTS] = found


def num_elements(node: fx.Node) -> int:
    """Number of elements of the one tensor that a node yields."""
    return math.prod(layouts(node)[0].sizes)


def counted_sizes(node: fx.Node) -> list[tuple[int, ...]]:
    """Sizes of the tensor(s) that a node yields, to count with: they decide nothing."""
    if _COUNTED in node.meta:
        return node.meta[_COUNTED]
    return [tuple(map(int, layout.sizes)) for layout in layouts(node)]


def set_counted_sizes(node: fx.Node, found: list[tuple[int, ...]]) -> None:
    """Record other sizes to count with."""
    node.meta[_COUNTED] = found


def num_bytes(node: fx.Node) -> int:
    """Size in bytes of the tensor(s) that a node yields."""
    pairs = zip(counted_sizes(node), tensors(node), strict=True)
    return sum(math.prod(sizes) * tensor.element_size() for sizes, tensor in pairs)


def tensors(node: fx.Node) -> list[torch.Tensor]:
    """Fake tensors that a node yields, one or several."""
    val = value(node)
    several = val if isinstance(val, (list, tuple)) else [val]
    return [each for each in several if isinstance(each, torch.Tensor)]


def layout(node: fx.Node) -> str:
    """Sizes, strides, type and device of the tensor that a node yields, as text."""
    val = tensor(node)
    if val is None:
        return "?"
    return f"{tuple(val.shape)} {val.stride()} {val.dtype} {val.device}"


def op_name(node: fx.Node) -> str:
    """Short name of the op: ``linear`` for ``aten.linear.default``, ``getitem``, or the target."""
    return short_name(node.target)


def short_name(target: Any) -> str:
    """Short name of what a node calls."""
    if isinstance(target, torch._ops.OpOverload):
        return _name_of_op(target)
    return getattr(target, "__name__", str(target))


@functools.cache
def _name_of_op(op: torch._ops.OpOverload) -> str:
    return op._schema.name.split("::")[-1]


def op_namespace(node: fx.Node) -> str:
    """Namespace of the op: ``aten``, ``_c10d_functional``, ..., or ``""`` for plain callables."""
    target = node.target
    return target.namespace if isinstance(target, torch._ops.OpOverload) else ""


def is_getitem(node: fx.Node) -> bool:
    """Whether the node picks one output of a multi-output op."""
    return node.op == "call_function" and node.target is operator.getitem


def is_subgraph(node: fx.Node) -> bool:
    """Whether the node names a graph that an op takes, such as the mask of flex attention."""
    return node.op == "get_attr" and value(node) is None


def is_branch_value(node: fx.Node) -> bool:
    """Whether the node picks a value that a submodule returns."""
    return is_getitem(node) and node.all_input_nodes[0].op == "call_module"


def is_plain_call(node: fx.Node) -> bool:
    """Whether the node calls an op, and does not pick a value that a submodule returns."""
    return node.op == "call_function" and not is_branch_value(node)


def is_random(node: fx.Node) -> bool:
    """Whether two runs of the op on the same inputs may differ."""
    if not isinstance(node.target, torch._ops.OpOverload) or not _is_seeded(node.target):
        return False
    if "scaled_dot_product" in op_name(node):
        return argument(node, 4, "dropout_p", 0.0) != 0
    return True


@functools.cache
def _is_seeded(op: torch._ops.OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded in op.tags


def has_effect(node: fx.Node) -> bool:
    """Whether the op does more than yield a value that its inputs determine.

    It draws random numbers, writes, or is called for its effect alone, as an assertion is.
    """
    schema = getattr(node.target, "_schema", None)
    acts = schema is not None and (schema.is_mutable or not schema.returns)
    return is_random(node) or acts


def must_stay(node: fx.Node) -> bool:
    """Whether the node must stay in the graph even if no node uses its value.

    The answer of ``fx`` depends on whether Dynamo is tracing. With it, attention without dropout
    would sometimes stay and sometimes not.
    """
    return has_effect(node) or node.is_impure(impure_random=False)


def is_foreign(node: fx.Node) -> bool:
    """Whether the op is neither torch's nor ours, so that its computation is unknown."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        return True
    return op_namespace(node) not in ("", "aten", "prims", "_c10d_functional", "pab_compile")


def is_call(node: fx.Node, *names: str) -> bool:
    """Whether the node calls an op of one of these short names."""
    return node.op == "call_function" and op_name(node) in names


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """Inputs of the graph in order."""
    return list(graph.find_nodes(op="placeholder"))


def output_node(graph: fx.Graph) -> fx.Node:
    """The one output node of a graph."""
    return next(iter(graph.find_nodes(op="output")))


def outputs(graph: fx.Graph) -> list[fx.Node]:
    """Nodes that the graph returns, each once, in order."""
    return list(dict.fromkeys(output_node(graph).all_input_nodes))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Argument of a call by position or keyword."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def source(node: fx.Node) -> str:
    """How the model's caller names this input: ``hidden_states``, or the path of a parameter."""
    return node.meta.get(_SOURCE, node.name)


def set_source(node: fx.Node, name: str) -> None:
    """Record how the model's caller names this input."""
    node.meta[_SOURCE] = name


def holders(node: fx.Node) -> tuple[str, ...]:
    """The caller's names of the lists and dicts that hold this input, the outermost first."""
    return node.meta.get(_HOLDERS, ())


def set_holders(node: fx.Node, names: tuple[str, ...]) -> None:
    """Record the caller's names of the lists and dicts that hold this input."""
    node.meta[_HOLDERS] = names


def is_constant_input(node: fx.Node) -> bool:
    """Whether this placeholder is a parameter or buffer of the model."""
    return bool(node.meta.get(_CONSTANT, False))


def set_constant_input(node: fx.Node, constant: bool) -> None:
    """Record whether this placeholder is a parameter or buffer of the model."""
    node.meta[_CONSTANT] = constant


def is_eager(node: fx.Node) -> bool:
    """Whether the origin of this placeholder is unknown: Python code between two graphs made it."""
    return bool(node.meta.get(_EAGER, False))


def set_eager(node: fx.Node, eager: bool) -> None:
    """Record whether this placeholder is of unknown origin."""
    node.meta[_EAGER] = eager


def is_volatile(node: fx.Node) -> bool:
    """Whether a value may change between two graphs of one forward, unseen by this library."""
    return bool(node.meta.get(_VOLATILE, False))


def set_volatile(node: fx.Node, volatile: bool) -> None:
    """Record whether a value may change between two graphs, unseen by this library."""
    node.meta[_VOLATILE] = volatile


def volatile_fact(volatile: bool) -> dict[str, Any]:
    """The fact ``set_volatile``, for a node that is made from a text."""
    return {_VOLATILE: True} if volatile else {}


def is_made(node: fx.Node) -> bool:
    """Whether a value changes only if Python makes another tensor (``passes.sites.binding``)."""
    return bool(node.meta.get(_MADE, False))


def set_made(node: fx.Node, made: bool) -> None:
    """Record whether a value changes only if Python makes another tensor."""
    node.meta[_MADE] = made


def mutated_inputs(graph_module: fx.GraphModule) -> tuple[int, ...]:
    """Positions of the inputs that a captured graph writes to. Its first outputs are for them."""
    return graph_module.meta.get(_MUTATED, ())


def set_mutated_inputs(graph_module: fx.GraphModule, positions: tuple[int, ...]) -> None:
    """Record which inputs a captured graph writes to."""
    graph_module.meta[_MUTATED] = positions


def has_explicit_casts(graph_module: fx.GraphModule) -> bool:
    """Whether the casts of autocast are ops of a captured graph, so that it runs without it."""
    return bool(graph_module.meta.get(_CASTS))


def set_explicit_casts(graph_module: fx.GraphModule) -> None:
    """Record that the casts of autocast are ops of a captured graph."""
    graph_module.meta[_CASTS] = True


def binding(node: fx.Node) -> Any:
    """Binding time of the node's value (``passes.sites.binding``), or None before that pass."""
    return node.meta.get(_BINDING)


def set_binding(node: fx.Node, when: Any) -> None:
    """Record the binding time of the node's value."""
    node.meta[_BINDING] = when


def axis_names(node: fx.Node) -> tuple[str, ...] | None:
    """Printable name of every dimension (``passes.axes.table``), or None before that pass."""
    return node.meta.get(_AXES)


def set_axis_names(node: fx.Node, names: tuple[str, ...]) -> None:
    """Record the printable name of every dimension."""
    node.meta[_AXES] = names


def copy_axis_names(target: fx.Node, origin: fx.Node) -> None:
    """Copy the printable names of another node's dimensions, if it has any."""
    if (names := axis_names(origin)) is not None:
        set_axis_names(target, names)


def forget_axis_names(node: fx.Node) -> None:
    """Remove the names of a node's dimensions."""
    node.meta.pop(_AXES, None)


def fused(node: fx.Node) -> Any:
    """For the last part of an op that was taken apart, the op; for its other parts, their role.

    None for all other nodes. ``passes.graph.fused`` takes ops apart.
    """
    return node.meta.get(_FUSED)


def set_fused(node: fx.Node, what: Any) -> None:
    """Record the op that a node was taken from, or the role of the node in it."""
    node.meta[_FUSED] = what


def sends(node: fx.Node) -> Any:
    """What each rank sends in a collective (``passes.parallel.sends``), or None."""
    return node.meta.get(_SENDS)


def set_sends(node: fx.Node, what: Any) -> None:
    """Record what each rank sends in a collective."""
    node.meta[_SENDS] = what


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    """All op calls of a graph in order."""
    return (node for node in graph.nodes if node.op == "call_function")
