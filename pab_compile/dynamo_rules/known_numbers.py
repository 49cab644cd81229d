"""Dynamo may read numbers from tensors that were made of numbers.

::

    grid = torch.stack([torch.tensor(video.shape[1:]) for video in videos])
    for frames, height, width in grid.tolist(): ...

The numbers are known while Dynamo traces, yet Dynamo breaks the graph there. In a loop over blocks
it then does not compile the forward at all. FakeTensors of one element remember their constant, and
ops on such tensors are computed. Traces for the backend remember up to ``_MAX_ELEMENTS`` elements,
also of whole numbers that ``torch.full`` and its like make.
torch itself forgets a constant that is written to. A size that is left open has no constant.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from .given_numbers import given_numbers
from .marks import is_marked

_MAX_ELEMENTS = 256
_TAKE_SIZES = ("view", "reshape", "expand", "repeat")
_READS = ("item", "tolist")
_MAKERS = (torch.full, torch.zeros, torch.ones, torch.arange)


@functools.cache
def extend_dynamo() -> None:
    """Extend torch, once per process. Without this, graphs break at the numbers."""
    try:
        from torch._dynamo.output_graph import OutputGraph
        from torch._dynamo.variables.tensor import TensorVariable
        from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    except ImportError:
        return
    if not all(hasattr(TensorVariable, f"method_{name}") for name in _READS):
        return
    started = OutputGraph.__init__

    @functools.wraps(started)
    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        started(self, *args, **kwargs)
        mode: Any = getattr(getattr(self, "tracing_context", None), "fake_mode", None)
        if hasattr(mode, "may_turn_const") and is_marked(getattr(self, "compiler_fn", None)):
            mode.may_turn_const = functools.partial(_may_turn_constant, mode)

    OutputGraph.__init__ = start  # type: ignore[method-assign]
    for name in _READS:
        _read_constants(TensorVariable, name)
    _remember_made(TorchInGraphFunctionVariable)


def _remember_made(variable_class: Any) -> None:
    """Let the whole numbers that a function makes of Python numbers alone be known."""
    call = variable_class.call_function

    @functools.wraps(call)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        result = call(self, tx, args, kwargs)
        if self.value in _MAKERS and is_marked(tx.output.compiler_fn):
            _remember(result, tx.fake_mode)
        return result

    variable_class.call_function = call_function


def _remember(made: Any, mode: Any) -> None:
    """Remember whole numbers that a call made, if it was given Python numbers alone."""
    if not hasattr(made, "as_proxy") or made.is_python_constant():
        return
    node = made.as_proxy().node
    fake = node.meta.get("example_value")
    if (
        node.target not in _MAKERS
        or node.all_input_nodes
        or getattr(fake, "constant", 0) is not None
    ):
        return
    if fake.numel() > _MAX_ELEMENTS or fake.is_floating_point() or fake.is_complex():
        return
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        fake.constant = node.target(*node.args, **(node.kwargs | {"device": fake.device}))
    mode.fake_tensor_converter.add_constant_storage_mapping(fake)


def _read_constants(variable_class: Any, name: str) -> None:
    """Let a method of Dynamo's tensors return a constant where the numbers are known."""
    from torch._dynamo.variables.base import VariableTracker

    read = getattr(variable_class, f"method_{name}")

    @functools.wraps(read)
    def method(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        constant = _numbers(tx, self.as_proxy().node)
        if constant is None:
            return read(self, tx, *args, **kwargs)
        return VariableTracker.build(tx, getattr(constant, name)())

    setattr(variable_class, f"method_{name}", method)


def _numbers(tx: Any, node: fx.Node) -> torch.Tensor | None:
    """The numbers of a node; None if they are not known."""
    if not is_marked(tx.output.compiler_fn):
        return None
    constant = getattr(node.meta.get("example_value"), "constant", None)
    return given_numbers(tx, node) if constant is None else constant


def _may_turn_constant(mode: Any, tensor: torch.Tensor) -> bool:
    """What torch asks of a tensor before it remembers it, but for the number of elements."""
    return (
        tensor.numel() <= _MAX_ELEMENTS
        and tensor.layout is torch.strided
        and not mode.is_our_fake(tensor)
        and tensor.device.type != "meta"
    )


def state_sizes(graph_module: fx.GraphModule) -> None:
    """Let known numbers that a graph of Dynamo takes as sizes be numbers, not tensors.

    Dynamo leaves elements of a tensor as they are in ``x.view(2, *grid)``. It also leaves reads of
    numbers whose values it used itself, and no tracer can follow these.
    """
    for node in reversed(graph_module.graph.nodes):
        if node.op != "call_method":
            continue
        if node.target in _READS and not node.users:
            graph_module.graph.erase_node(node)
        elif node.target in _TAKE_SIZES:
            sizes = [_number(arg) for arg in node.args[1:]]
            node.args = (node.args[0], *sizes)


def _number(arg: Any) -> Any:
    """The number that a node always is; anything else as it is."""
    constant = getattr(arg.meta.get("example_value"), "constant", None) if _is_node(arg) else None
    if constant is None or constant.ndim or constant.is_floating_point():
        return arg
    return int(constant)


def _is_node(arg: Any) -> bool:
    return isinstance(arg, fx.Node)
