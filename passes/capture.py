"""Capture: from a Dynamo graph to a functional, pre-dispatch ATen graph with static shapes.

``scaled_dot_product_attention``, ``linear`` and ``layer_norm`` stay single nodes, inputs keep their
order, and the graph is the same on every device. One of the two files that may use private torch
APIs (the other is ``pab_compile/lower.py``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._C._functorch import _vmap_decrement_nesting, maybe_current_level
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from . import ir
from .errors import UnsupportedModelError
from .folding import fold_mapped_constants
from .refusals import refuse_autocast, refuse_other_memory
from .wrapped import is_wrapped, plain_tensors, take_plain

Decompositions = dict[torch._ops.OpOverload, Callable[..., Any]]

_PLACES = re.compile(r"(\[\d+\])+$")
_DYNAMIC_SHAPE = "Dynamic shape operator"
_HOW_TO_KEEP = (
    "torch.compiler.config.capture_dynamic_output_shape_ops = True, set before the model is "
    "compiled, keeps it in the graph"
)
_LAST_INDEX = re.compile(r"\[['\"]?([^\]'\"]+)['\"]?\]$|\.(\w+)$")


def capture(dynamo_graph: fx.GraphModule, args: Sequence[Any]) -> fx.GraphModule:
    """Trace a Dynamo graph into a functional, pre-dispatch ATen graph.

    Args:
        dynamo_graph: what Dynamo hands to a backend. Not modified.
        args: one value per placeholder: tensors (real, meta or fake) and numbers. Numbers (dynamic
            sizes and the like) become constants, so the result has static shapes; its placeholders
            are the other inputs in order (see ``Inputs``).

    Returns:
        A graph module without dropout, metadata assertions and dead code. Every placeholder knows
        its name in the caller's words and whether it is a parameter (``ir.source``,
        ``ir.is_constant_input``); every call keeps its module path and source line.

    Raises:
        UnsupportedModelError: torch cannot trace the graph, or it switches autocast inside, or
            gives a tensor other memory.
    """
    refuse_other_memory(dynamo_graph)
    inputs = Inputs.of(dynamo_graph, args)
    static_graph = _with_constant_numbers(dynamo_graph, inputs, args)
    fold_mapped_constants(static_graph)
    if inputs.wrapped:
        take_plain(static_graph, inputs.given_tensors(args))
    fake_args = _fake(inputs.tensors(args))
    level = maybe_current_level()
    try:
        captured = _trace(static_graph, fake_args, {})
        if composite := _composite_ops(captured.graph):
            captured = _trace(static_graph, fake_args, composite)
    except (RuntimeError, NotImplementedError) as error:
        while maybe_current_level() != level:  # it entered a vmap and did not get to leave it
            _vmap_decrement_nesting()
        raise UnsupportedModelError(
            f"The graph could not be captured: {str(error).splitlines()[0]}. "
            + _why_not_captured(inputs)
        ) from error
    for node, (name, constant) in zip(ir.placeholders(captured.graph), inputs.sources, strict=True):
        ir.set_source(node, name)
        ir.set_constant_input(node, constant)
    remove_noise(captured)
    refuse_autocast(captured.graph)
    return captured


def _why_not_captured(inputs: Inputs) -> str:
    if not inputs.wrapped:
        return (
            "Masks that vmap makes of inputs cannot be traced, nor sizes that depend on values if "
            "these are random, written to in place or made under autocast. Compute them before the "
            "call of the model, or leave this model to another backend."
        )
    first = next(iter(inputs.wrapped.values()))
    return (
        f"{len(inputs.wrapped)} tensor(s) of the model are made of other tensors ({first}), and "
        "their class must compute whole torch functions (__torch_function__) from plain tensors, "
        "as the quantised weights of torchao do."
    )


def _trace(
    static_graph: fx.GraphModule, fake_args: Sequence[FakeTensor], decompositions: Decompositions
) -> fx.GraphModule:
    with warnings.catch_warnings():
        # Ops of others that are made of plain ones are seen to in a second look.
        warnings.filterwarnings("ignore", "At pre-dispatch tracing, we assume")
        captured = trace_pure(static_graph, fake_args, decompositions)
        return captured or trace_any(static_graph, fake_args, decompositions)


def _composite_ops(graph: fx.Graph) -> Decompositions:
    """Foreign ops that say which plain ops they are made of, each with how to take it apart."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore
    foreign = [node.target for node in ir.calls(graph) if ir.is_foreign(node)]
    return {
        op: op.decompose
        for op in foreign
        if isinstance(op, torch._ops.OpOverload)
        and torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)  # pyright: ignore
    }


@dataclass(frozen=True)
class Inputs:
    """Which inputs of a Dynamo graph are tensors, and what a captured graph is specialised on.

    Numbers are integers (dynamic sizes, storage offsets), and scalar tensors of which only
    ``item()`` is used: that is how Dynamo passes a dynamic ``float``.

    Attributes:
        is_number: per input, whether it is a number.
        used: positions of the numbers that an op uses.
        resizable: positions of the tensors whose sizes or strides Dynamo leaves open.
        sources: per plain tensor, its name in the caller's words, and whether it is a weight.
        wrapped: position -> what is made of other tensors.
        measured: among the plain tensors, which the graph was given to have static shapes.
    """

    is_number: tuple[bool, ...]
    used: tuple[int, ...]
    resizable: tuple[int, ...]
    sources: tuple[tuple[str, bool], ...]
    wrapped: Mapping[int, str]
    measured: frozenset[int] = frozenset()

    @staticmethod
    def of(dynamo_graph: fx.GraphModule, args: Sequence[Any]) -> Inputs:
        """Tell the inputs of a Dynamo graph apart."""
        nodes = ir.placeholders(dynamo_graph.graph)
        is_number = tuple(_is_number(n, arg) for n, arg in zip(nodes, args, strict=True))
        used = tuple(i for i, n in enumerate(nodes) if is_number[i] and n.users)
        resizable = tuple(i for i, n in enumerate(nodes) if _is_resizable(n))
        sources: list[tuple[str, bool]] = []
        wrapped: dict[int, str] = {}
        measured: set[int] = set()
        for number, (node, arg) in enumerate(zip(nodes, args, strict=True)):
            if is_number[number]:
                continue
            name, constant = _describe_input(node, arg)
            if ir.is_eager(node):
                measured.add(len(sources))
            sources += [(plain, constant) for plain, _ in plain_tensors(arg, name)]
            if is_wrapped(arg):
                wrapped[number] = f"{name!r} is a {type(arg).__name__}"
        found = tuple(sources)
        return Inputs(is_number, used, resizable, found, wrapped, frozenset(measured))

    def tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The inputs of the captured graph."""
        if self.wrapped:
            return [plain for arg in self.given_tensors(args) for _, plain in plain_tensors(arg)]
        return self.given_tensors(args)

    def given_tensors(self, args: Sequence[Any]) -> list[torch.Tensor]:
        """The tensors among Dynamo's inputs, as they are."""
        return [arg for arg, number in zip(args, self.is_number, strict=True) if not number]

    def specialisation(self, args: Sequence[Any]) -> tuple[Any, ...]:
        """What the captured graph is specialised on: used numbers, open sizes and strides."""
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


def break_reason(dynamo_graph: fx.GraphModule) -> str:
    """Why Dynamo broke the forward after this graph, in a line; ``""`` where it did not."""
    reason = getattr(dynamo_graph, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    where = reason.user_stack[-1] if reason.user_stack else None
    place = f" ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})" if where else ""
    line = reason.reason.strip().splitlines()[0]
    hint = f"; {_HOW_TO_KEEP}" if line == _DYNAMIC_SHAPE else ""
    return f"{line}{place}{hint}"


def remove_noise(graph_module: fx.GraphModule) -> int:
    """Remove ops without effect at inference: dropout in eval, assertions, aliases, dead code.

    A cast to the type of another tensor takes nothing of that tensor's value, so it no longer
    reads it.

    Returns:
        The number of nodes removed.
    """
    graph = graph_module.graph
    before = len(graph.nodes)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if _is_identity(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif ir.is_call(node, "_assert_tensor_metadata") or _holds_anyway(node):
            graph.erase_node(node)
        elif ir.is_call(node, "type_as"):
            _cast_by_dtype(node)
    graph.eliminate_dead_code(ir.must_stay)
    graph_module.recompile()
    return before - len(graph.nodes)


def _cast_by_dtype(node: fx.Node) -> None:
    """``type_as(x, y)`` becomes ``_to_copy(x, dtype=..., device=...)``, or ``x``."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    before, after = ir.tensor(x), ir.tensor(node)
    assert before is not None and after is not None
    if (before.dtype, before.device) == (after.dtype, after.device):
        node.replace_all_uses_with(x)
        node.graph.erase_node(node)
        return
    node.target = torch.ops.aten._to_copy.default
    node.args, node.kwargs = (x,), {"dtype": after.dtype, "device": after.device}


def _holds_anyway(node: fx.Node) -> bool:
    """Whether the node asserts something about sizes, which are known by now."""
    return ir.is_call(node, "_assert_scalar") and node.args[0] is True


def _is_identity(node: fx.Node) -> bool:
    if ir.is_call(node, "dropout", "feature_dropout"):
        return not ir.argument(node, 2, "train", True) or ir.argument(node, 1, "p", 0.5) == 0
    return ir.is_call(node, "alias", "detach")


def _with_constant_numbers(
    dynamo_graph: fx.GraphModule, inputs: Inputs, args: Sequence[Any]
) -> fx.GraphModule:
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
    return fx.GraphModule(dynamo_graph, graph)


def _describe_input(node: fx.Node, value: torch.Tensor) -> tuple[str, bool]:
    """Name of an input in the caller's words, and whether it is a parameter or buffer."""
    dynamo_source = getattr(node, "_dynamo_source", None)
    name = getattr(dynamo_source, "name", node.name)
    name = str(name() if callable(name) else name)
    constant = isinstance(value, torch.nn.Parameter) or bool(
        re.search(r"_parameters\b|_buffers\b", name)
    )
    return (ir.short_path(name) if constant else _callers_name(name)), constant


def _callers_name(name: str) -> str:
    places = _PLACES.search(name)
    place = places.group() if places else ""
    match = _LAST_INDEX.search(name.removesuffix(place))
    return (match.group(1) or match.group(2)) + place if match else name


def trace_pure(
    static_graph: fx.GraphModule,
    fake_args: Sequence[FakeTensor],
    decompositions: Decompositions | None = None,
) -> fx.GraphModule | None:
    """Trace a graph that writes to none of its inputs and holds no tensors, in one look at it.

    Gives what ``trace_any`` gives, in less than half the time.

    Returns:
        None for any other graph.
    """
    holds_tensors = next(static_graph.parameters(), None) is not None
    holds_tensors |= next(static_graph.buffers(), None) is not None
    if holds_tensors or not fake_args:
        return None
    writes = False

    def run(*args: Any) -> Any:
        nonlocal writes
        outputs = fx.Interpreter(static_graph).run(*args)
        writes = any(_is_written_to(arg) for arg in args)
        return outputs

    function = dispatch_functionalize(run, FunctionalTensorMode(pre_dispatch=True, export=True))
    with torch.no_grad(), fake_args[0].fake_mode, enable_python_dispatcher(), preserve_node_meta():
        captured = make_fx(function, decompositions, tracing_mode="real", pre_dispatch=True)(
            *fake_args
        )
    return None if writes else captured


def _is_written_to(tensor: Any) -> bool:
    """Whether a graph changed a functional tensor that it was given: its values or its shape."""
    inner = tensor.elem
    changed = torch._functionalize_has_data_mutation(inner)  # pyright: ignore
    return changed or torch._functionalize_has_metadata_mutation(inner)  # pyright: ignore


def trace_any(
    static_graph: fx.GraphModule,
    fake_args: Sequence[FakeTensor],
    decompositions: Decompositions | None = None,
) -> fx.GraphModule:
    """Trace a graph after a first look that finds out what it writes to."""
    with torch.no_grad():
        captured, signature = aot_export_module(
            static_graph,
            fake_args,
            trace_joint=False,
            pre_dispatch=True,
            decompositions=decompositions,
        )
    assert isinstance(captured, fx.GraphModule)
    written = _mutated_inputs(captured, signature)
    _bind_lifted_tensors(captured, static_graph, signature)
    inputs = ir.placeholders(captured.graph)
    for node in written:
        ir.set_volatile(node, True)
    ir.set_mutated_inputs(captured, tuple(inputs.index(node) for node in written))
    return captured


def _fake(tensors: Sequence[torch.Tensor]) -> list[FakeTensor]:
    known = next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
    mode = known or FakeTensorMode(allow_non_fake_inputs=True)
    return [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors]


def _mutated_inputs(captured: fx.GraphModule, signature: Any) -> list[fx.Node]:
    """The inputs whose new values are the first outputs, in their order."""
    by_name = {node.name: node for node in ir.placeholders(captured.graph)}
    if signature.buffers_to_mutate or signature.parameters_to_mutate:
        raise UnsupportedModelError(
            "The model writes to a tensor that its graph holds as a constant, so what it computes "
            "depends on how often it was called. Keep that tensor as a buffer of the module."
        )
    return [by_name[name] for name in signature.user_inputs_to_mutate.values()]


def _bind_lifted_tensors(captured: fx.GraphModule, origin: fx.GraphModule, signature: Any) -> None:
    """Turn the tensors that the graph itself holds from leading inputs back into attributes."""
    lifted = [*signature.parameters, *signature.buffers]
    for node, name in zip(ir.placeholders(captured.graph), lifted, strict=False):
        owner, _, leaf = name.rpartition(".")
        held = getattr(origin.get_submodule(owner), leaf)
        attribute = f"constant_{name.replace('.', '_')}"
        captured.register_buffer(attribute, held.detach(), persistent=False)
        with captured.graph.inserting_before(node):
            constant = captured.graph.get_attr(attribute)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant)
        captured.graph.erase_node(node)
