"""Tracing: what torch traces with, and its fake tensors.

This file may use private torch APIs. So may ``pab_compile/compile/lower.py``,
``pab_compile/dynamo.py`` and the files in ``pab_compile/dynamo_rules``. They import these APIs only
on use, so that ``import pab_compile`` costs little.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

import sympy
import torch
from torch import fx

from pab_compile.passes.errors import UnsupportedModelError

from . import ir

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_FOLDERS = os.path.join(os.path.dirname(torch.__file__), "")

Decompositions = dict[torch._ops.OpOverload, Callable[..., Any]]


def module_of(root: torch.nn.Module | dict[str, Any], graph: fx.Graph) -> fx.GraphModule:
    """Like ``fx.GraphModule``, but its Python code is written at its first call.

    Most graphs of the passes never run, and equal pieces are compiled once. Writing the code took a
    quarter of their time.
    """
    from torch.fx._lazy_graph_module import _LazyGraphModule

    return _LazyGraphModule(root, graph)


def with_code(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with its Python code, as an inner compiler expects it."""
    from torch.fx._lazy_graph_module import _LazyGraphModule

    if not isinstance(graph_module, _LazyGraphModule):
        return graph_module
    return fx.GraphModule(graph_module, graph_module.graph)


@contextmanager
def tracing() -> Iterator[None]:
    """Graphs that are made inside write their code late, and errors leave no vmap entered."""
    from torch._C._functorch import _vmap_decrement_nesting, maybe_current_level
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    level = maybe_current_level()
    try:
        with warnings.catch_warnings(), _use_lazy_graph_module(True):
            # A second trace decomposes foreign ops that consist of plain ops.
            warnings.filterwarnings("ignore", "At pre-dispatch tracing, we assume")
            yield
    except Exception:
        while maybe_current_level() != level:
            _vmap_decrement_nesting()
        raise


def is_composite(op: torch._ops.OpOverload) -> bool:
    """Whether an op consists of other ops, into which ``op.decompose`` takes it apart."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd  # pyright: ignore
    return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), key)  # pyright: ignore


def trace_pure(
    static_graph: fx.GraphModule,
    fake_args: Sequence[FakeTensor],
    decompositions: Decompositions | None = None,
) -> fx.GraphModule | None:
    """Trace once a graph that writes to none of its inputs and has no tensors of its own.

    The result is that of ``trace_any``, in less than half the time.

    Returns:
        The traced graph; None for any other graph.
    """
    holds_tensors = next(static_graph.parameters(), None) is not None
    holds_tensors |= next(static_graph.buffers(), None) is not None
    if holds_tensors or not fake_args:
        return None
    writes = False

    def run(*args: Any) -> Any:
        nonlocal writes
        outputs = fx.Interpreter(static_graph).run(*args)
        writes = any(is_written_to(arg) or has_new_layout(arg) for arg in args)
        return outputs

    captured = trace_function(run, fake_args, fake_args[0].fake_mode, decompositions)
    return None if writes else captured


def trace_function(
    function: Callable[..., Any],
    tensors: Sequence[FakeTensor],
    mode: FakeTensorMode,
    decompositions: Decompositions | None = None,
) -> fx.GraphModule:
    """Trace a function of tensors once. What it writes to its inputs is not in the graph.

    Args:
        function: it gets functional tensors, of which the functions below tell more.
        tensors: its arguments.
        mode: that of the tensors.
        decompositions: of ops.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.traceback import preserve_node_meta

    functional_mode = FunctionalTensorMode(pre_dispatch=True, export=True)
    functional = dispatch_functionalize(function, functional_mode)
    with torch.no_grad(), mode, enable_python_dispatcher(), preserve_node_meta():
        traced = make_fx(functional, decompositions, tracing_mode="real", pre_dispatch=True)
        return traced(*tensors)


def trace_plain(
    function: Callable[..., Any], tensors: Sequence[FakeTensor], mode: FakeTensorMode
) -> fx.GraphModule:
    """Trace a function of tensors once, into the ops that torch runs at last.

    Args:
        function: it may call ``torch.vmap``.
        tensors: its arguments.
        mode: that of the tensors.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad(), mode:
        return make_fx(function, tracing_mode="real")(*tensors)


def is_written_to(tensor: Any) -> bool:
    """Whether a function changed the values of a functional tensor among its inputs."""
    return torch._functionalize_has_data_mutation(tensor.elem)  # pyright: ignore


def has_new_layout(tensor: Any) -> bool:
    """Whether a function changed the shape or the strides of a functional tensor in place."""
    return torch._functionalize_has_metadata_mutation(tensor.elem)  # pyright: ignore


def memory_of(tensor: Any) -> int:
    """Names the memory of a functional tensor. Views have that of their base."""
    return tensor.elem.untyped_storage()._cdata


def trace_any(
    static_graph: fx.GraphModule,
    fake_args: Sequence[FakeTensor],
    decompositions: Decompositions | None = None,
) -> fx.GraphModule:
    """Trace a graph twice. The first trace finds out what the graph writes to."""
    from torch._functorch.aot_autograd import aot_export_module

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


def fake(tensors: Sequence[torch.Tensor]) -> list[FakeTensor]:
    """Fake tensors of the shapes, strides, types and devices of some tensors."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    known = next((t.fake_mode for t in tensors if isinstance(t, FakeTensor)), None)
    mode = known or FakeTensorMode(allow_non_fake_inputs=True)
    return [t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors]


def is_plain_fake(value: Any) -> bool:
    """Whether a fake tensor is described by its sizes, strides, offset, type and device."""
    from torch._subclasses.fake_tensor import FakeTensor

    if type(value) is not FakeTensor or value.layout != torch.strided or value.constant is not None:
        return False
    return not value.is_conj() and not value.is_neg()


def symbolic_mode(
    names: Sequence[str], hints: Sequence[int]
) -> tuple[FakeTensorMode, tuple[sympy.Symbol, ...]]:
    """What makes fake tensors with symbolic sizes, and a symbol per size.

    Args:
        names: names of the sizes.
        hints: a value of each, at least 2. Conditions are met as these values meet them.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    return mode, more_symbols(mode, names, hints)


def more_symbols(
    mode: FakeTensorMode, names: Sequence[str], hints: Sequence[int]
) -> tuple[sympy.Symbol, ...]:
    """Further symbols for a mode of ``symbolic_mode``. Their names must be new."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    assert mode.shape_env is not None
    symbols = [
        mode.shape_env.create_symbol(hint, ConstantSource(name), dynamic_dim=DimDynamic.DYNAMIC)
        for name, hint in zip(names, hints, strict=True)
    ]
    assert all(isinstance(symbol, sympy.Symbol) for symbol in symbols), symbols
    return tuple(symbols)  # type: ignore[arg-type]


def _mutated_inputs(captured: fx.GraphModule, signature: Any) -> list[fx.Node]:
    """The inputs whose new values are the first outputs, in that order."""
    by_name = {node.name: node for node in ir.placeholders(captured.graph)}
    if signature.buffers_to_mutate or signature.parameters_to_mutate:
        raise UnsupportedModelError(
            "The model writes to a tensor that its graph holds as a constant, so what it computes "
            "depends on how often it was called. Keep that tensor as a buffer of the module."
        )
    return [by_name[name] for name in signature.user_inputs_to_mutate.values()]


def _bind_lifted_tensors(captured: fx.GraphModule, origin: fx.GraphModule, signature: Any) -> None:
    """Turn the graph's own tensors, which are its first inputs now, back into attributes."""
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


def fake_mode() -> FakeTensorMode:
    """What makes the fake tensors of a graph that was not traced."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def function_name(target: Any) -> str | None:
    """The name of a function of torch or Python, as they come; None for any other one."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if module in ("_operator", "math", "builtins") or isinstance(target, type):
        found = getattr(sys.modules.get(str(module)), str(name), None)
        is_known = str(module).split(".")[0] in ("_operator", "math", "builtins", "torch")
        return f"{module}.{name}" if found is target and is_known else None
    if isinstance(target, BuiltinFunctionType):
        spaces = (torch, torch._C._nn, torch._C._linalg, torch._C._fft, torch._C._special)  # pyright: ignore
        name = target.__name__
        found = (space for space in spaces if getattr(space, name, None) is target)
        return next((f"{space.__name__}.{name}" for space in found), None)
    is_named = "<" not in str(name)  # else several functions have this name
    if isinstance(target, FunctionType) and is_named and _is_torchs(target):
        return f"{module}.{name}"
    return None


@contextmanager
def outside_of_tracing() -> Iterator[None]:
    """Calls inside are made for real, whoever traces or watches calls around them."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        yield


def changes_torch() -> bool:
    """Whether somebody replaced functions of torch, or watches each of its calls."""
    from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack

    spaces = (torch.nn.functional, torch.Tensor)
    found = (each for space in spaces for each in vars(space).values())
    watched = _len_torch_dispatch_stack() + _len_torch_function_stack() > 0
    return watched or not all(_is_torchs(x) for x in found if isinstance(x, FunctionType))


def _is_torchs(function: FunctionType) -> bool:
    return function.__code__.co_filename.startswith(_FOLDERS)
