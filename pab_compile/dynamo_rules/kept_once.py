"""Runs a module once, in the middle of a trace, to learn what an op in its place returns.

The graph that Dynamo traced so far runs on copies of the real inputs, up to the call of the module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pab_compile.passes.graph.kept import named_tensors
from pab_compile.passes.graph.tracing import outside_of_tracing

_ATTENTIONS = ("scaled_dot_product", "flash_attn", "sage_attn", "flex_attention", "attention")
_PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "matmul", "einsum")
_KEEP_WEIGHTS = ("_to_copy", "clone", "native_dropout", "detach", "contiguous")


@dataclass(frozen=True)
class Learnt:
    """What a module returns.

    Attributes:
        like: the position of the argument whose shape its result has.
        dtype: the type of its result; None: that of this argument.
        flops: its floating point operations per number of the result.
        apart: whether it seems to keep tokens apart: parts of them give parts of the result.
    """

    like: int
    dtype: torch.dtype | None
    flops: int
    apart: bool


def learn(
    module: torch.nn.Module,
    output: Any,
    given: Sequence[fx.Node],
    names: Sequence[str],
    last: fx.Node | None,
) -> Learnt | None:
    """Run a module on the values that it really gets.

    Args:
        module: the module.
        output: Dynamo's graph so far, with what it holds.
        given: the nodes of its arguments, and then of its weights.
        names: per argument its keyword, or "".
        last: the last node before the call; None if there is none.

    Returns:
        What an op in its place returns; None if it cannot be one, or if no values are there.
    """
    devices = {t.device for _, t in named_tensors(module) if t.device.type == "cuda"}
    with torch.random.fork_rng([d.index for d in devices]), torch.no_grad(), outside_of_tracing():
        try:
            values = _values(output, given[: len(names)], last)
            return _tried(module, values, names)
        except Exception:  # whatever it is, the graph breaks here as it does without this
            return None


def shape_of_module(module: torch.nn.Module) -> tuple[Any, ...]:
    """All that an op in the place of a module takes for granted: its layers and their weights."""
    return tuple(
        (name, type(each), each.training, tuple(each._parameters), tuple(each._buffers))
        for name, each in module.named_modules(remove_duplicate=False)
    )


def _values(output: Any, wanted: Sequence[fx.Node], last: fx.Node | None) -> list[torch.Tensor]:
    """The values of some nodes, computed from copies of the inputs of Dynamo's graph."""
    every = list(output.graph.nodes)
    inputs = [node for node in every if node.op == "placeholder"]
    end = len(inputs) if last is None else max(len(inputs), every.index(last) + 1)
    nodes = every[:end]
    left = Counter(source for node in nodes for source in node.all_input_nodes)
    left.update(wanted)
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        if not left[node] and node.op == "placeholder":
            continue
        values[node] = _value(output, node, values)
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source]:
                del values[source]
    return [values[node] for node in wanted]


def _value(output: Any, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    if node.op == "placeholder":
        return _input(node)
    if node.op == "get_attr":
        return output.nn_modules[node.target]
    args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target = output.nn_modules[node.target] if node.op == "call_module" else node.target
    return target(*args, **kwargs)  # type: ignore[operator]


def _input(node: fx.Node) -> Any:
    """The real value of an input. The graph may write to it, so it is a copy."""
    given = node.meta["grapharg"].example
    if isinstance(given, torch.SymInt):
        return given.node.require_hint()
    if type(given) not in (torch.Tensor, torch.nn.Parameter) or given.device.type == "meta":
        raise TypeError("an input without numbers")
    return given if isinstance(given, torch.nn.Parameter) else given.clone()


def _tried(
    module: torch.nn.Module, values: Sequence[torch.Tensor], names: Sequence[str]
) -> Learnt | None:
    """What a module returns; None if its call does more than return one new tensor."""
    args = [value for value, name in zip(values, names, strict=True) if not name]
    named = {name: value for value, name in zip(values, names, strict=True) if name}
    before, copies = _state(module, values), [value.clone() for value in values]
    random = _random_states(values)
    counter = FlopCounterMode(display=False)
    with counter, _Ops() as ops, _Functions() as functions:
        result = module(*args, **named)
    if ops.has_attention or functions.has_attention or _random_states(values) != random:
        return None
    is_changed = _state(module, values) != before
    is_changed |= not all(map(torch.equal, copies, values))
    if is_changed or type(result) is not torch.Tensor or not result.is_contiguous():
        return None
    held = {t.untyped_storage().data_ptr() for t in (*values, *_held(module))}
    if result.untyped_storage().data_ptr() in held:
        return None
    alike = (
        number
        for number, value in enumerate(values)
        if value.shape == result.shape and value.device == result.device
    )
    like = next(alike, None)
    if like is None:
        return None
    dtype = None if values[like].dtype == result.dtype else result.dtype
    flops = counter.get_total_flops() // max(1, result.numel())
    return Learnt(
        like, dtype, flops, len(values) == 1 and _keeps_apart(module, names[0], values[0])
    )


def _keeps_apart(module: torch.nn.Module, name: str, tokens: torch.Tensor) -> bool:
    """Whether parts of the tokens give parts of the result, as tried on real and on equal tokens.

    Equal tokens all go to one expert, which may have room for some of them only.
    """

    def run(given: torch.Tensor) -> torch.Tensor:
        return module(**{name: given}) if name else module(given)

    if tokens.ndim < 3:
        return False
    most = 1e-4 if tokens.dtype in (torch.float32, torch.float64) else 3e-2
    for dim in range(tokens.ndim - 1):
        size = tokens.shape[dim]
        equal = tokens.narrow(dim, 0, 1).expand_as(tokens).contiguous()
        for given in (tokens, equal) if size > 1 else ():
            whole = run(given)
            first, second = given.split([size // 3 + 1, size - size // 3 - 1], dim)
            by_parts = torch.cat([run(first.contiguous()), run(second.contiguous())], dim)
            turned = run(given.roll(1, dim)).roll(-1, dim)
            for other in (by_parts, turned):
                if (other - whole).abs().max() > most * whole.abs().max():
                    return False
    return True


def _held(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that a module holds: weights, buffers and others."""
    yield from (tensor for _, tensor in named_tensors(module))
    for each in module.modules():
        yield from (
            leaf for leaf in pytree.tree_leaves(list(vars(each).values())) if _is_tensor(leaf)
        )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _state(module: torch.nn.Module, values: Sequence[torch.Tensor]) -> list[Any]:
    """What the call of a module might change, in a form that can be compared."""
    state: list[Any] = [_of(value) for value in (*values, *_held(module))]
    for name, each in module.named_modules():
        for key, value in vars(each).items():
            inside = list(value) if isinstance(value, (list, tuple, set)) else value
            inside = [*value, *value.values()] if isinstance(value, dict) else inside
            leaves = inside if isinstance(inside, list) else [inside]
            state.append((name, key, id(value), [_of_attribute(leaf) for leaf in leaves]))
    return state


def _of(tensor: torch.Tensor) -> tuple[int, int]:
    return id(tensor), -1 if tensor.is_inference() else tensor._version


def _of_attribute(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else id(value)


def _random_states(values: Sequence[torch.Tensor]) -> list[bytes]:
    devices = {value.device for value in values if value.device.type == "cuda"}
    states = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
    return [state.numpy().tobytes() for state in states]


class _Functions(TorchFunctionMode):
    """Notes whether torch is asked for an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.has_attention = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.has_attention |= any(word in name for word in _ATTENTIONS)
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    """Notes whether what a softmax gives is multiplied with tokens: an attention in plain ops."""

    def __init__(self) -> None:
        super().__init__()
        self.has_attention = False
        self._weights: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func).split(".")[1]
        self.has_attention |= any(word in name for word in _ATTENTIONS)
        given = [t for t in pytree.tree_leaves((args, kwargs)) if _is_tensor(t)]
        is_weight = any(self._is_weight(t) for t in given)
        if name in _PRODUCTS and is_weight:
            self.has_attention = True
        if "softmax" in name or (is_weight and (func.is_view or name in _KEEP_WEIGHTS)):
            self._weights += [t for t in pytree.tree_leaves(result) if _is_tensor(t)]
        return result

    def _is_weight(self, tensor: torch.Tensor) -> bool:
        memory = tensor.untyped_storage().data_ptr()
        return any(t.untyped_storage().data_ptr() == memory for t in self._weights)
