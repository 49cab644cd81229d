"""Kept modules: modules of a model that run as the user wrote them, as one op of a graph.

A mixture of experts may loop over counts that only the device knows. Dynamo breaks the forward
there, in every block. Kept as one op, the module leaves the forward whole::

    %y = pab_user.run_module([%x], [%weight, ...], 7, like=0, dtype)

The op calls the module itself, so hooks, adapters and offloading go on. Its weights are operands,
so all that asks whether a weight changed sees them. Its result is known before it runs: it has the
shape of one operand. A module that returns anything else is an error.

Dynamo's graph names a module by a number. A captured graph names it by a tensor, so equal blocks
remain equal pieces (``place_modules``).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes.errors import UnsupportedModelError

from . import ir
from .origin import module_path
from .tracing import fake

_SCHEMA = (
    "(Tensor[] tensors, Tensor[] weights, {} module, int like, ScalarType dtype, int flops, "
    "bool apart) -> Tensor"
)
_TAGS = ("needs_exact_strides", "cudagraph_unsafe")
_library = torch.library.Library("pab_user", "DEF")
for _name, _type in (("run_module", "int"), ("run_module.placed", "Tensor")):
    _tags = [getattr(torch.Tag, tag) for tag in _TAGS if hasattr(torch.Tag, tag)]
    _library.define(_name + _SCHEMA.format(_type), tags=_tags)


@dataclass(frozen=True, eq=False)
class Kept:
    """A call of a module that is kept.

    Attributes:
        module: the module. Nothing here keeps it alive.
        path: its name in the model.
        weights: names of its weights and buffers, in the order of the op.
        names: per argument its keyword, or "" where it is given by position.
        autocast: device, type and whether it is on, of all autocast around the call.
    """

    module: weakref.ref[torch.nn.Module]
    path: str
    weights: tuple[str, ...]
    names: tuple[str, ...]
    autocast: tuple[tuple[str, torch.dtype, bool], ...] = ()

    def run(self, tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> Any:
        """Call the module. Weights that are not its own take the place of its own."""
        module = self.module()
        if module is None:
            raise UnsupportedModelError(f"The module {self.path} of a compiled model is gone.")
        args = [t for t, name in zip(tensors, self.names, strict=True) if not name]
        named = {name: t for t, name in zip(tensors, self.names, strict=True) if name}
        own = dict(named_tensors(module))
        others = {
            name: weight
            for name, weight in zip(self.weights, weights, strict=True)
            if own.get(name) is not weight
        }
        with ExitStack() as stack:
            for context in map(_autocast, self.autocast):
                stack.enter_context(context)
            if others:
                return torch.func.functional_call(module, others, tuple(args), named)
            return module(*args, **named)


_numbers = itertools.count()
_kept: dict[int, Kept] = {}


def keep(kept: Kept) -> int:
    """Remember a call of a module for as long as the module lives. The number names it."""
    number = next(_numbers)
    _kept[number] = kept
    module = kept.module()
    assert module is not None
    weakref.finalize(module, _kept.pop, number, None)
    return number


def named_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights and buffers of a module, by name."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def is_kept(node: fx.Node) -> bool:
    """Whether a node calls a kept module."""
    return node.op == "call_function" and ir.op_namespace(node) == "pab_user"


def notes_of(graph: fx.Graph) -> list[str]:
    """What is to be said of the kept modules of a graph."""
    paths = list(dict.fromkeys(module_path(node) for node in graph.nodes if is_kept(node)))
    if not paths:
        return []
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return [
        f"{paths[0]}{more}: run as they are, each as one op, since their Python code depends on "
        "values of tensors"
    ]


def place_modules(graph_module: fx.GraphModule) -> None:
    """Name kept modules by tensors, which are the graph's own. They are inputs of its pieces."""
    nodes = [node for node in graph_module.graph.nodes if is_kept(node)]
    for index, node in enumerate(nodes):
        tensors, weights, number, *rest = node.args
        name = f"kept_module_{index}"
        held = torch.tensor(number)
        graph_module.register_buffer(name, held, persistent=False)
        with graph_module.graph.inserting_before(node):
            place = graph_module.graph.get_attr(name)
        ir.set_value(place, fake([*_values(node), held])[-1])
        node.target = torch.ops.pab_user.run_module.placed
        node.args = (tensors, weights, place, *rest)


def _values(node: fx.Node) -> list[torch.Tensor]:
    return [value for n in node.all_input_nodes if (value := ir.tensor(n)) is not None]


def _autocast(state: tuple[str, torch.dtype, bool]) -> AbstractContextManager[Any]:
    device, dtype, enabled = state
    return torch.autocast(device, dtype, enabled=enabled)


def _call(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    module: Any,
    like: int,
    dtype: torch.dtype,
    flops: int,
    apart: bool,
) -> torch.Tensor:
    """Run a kept module.

    ``flops`` are its operations per number of the result. It is ``apart`` if parts of the tokens
    give parts of the result.
    """
    del flops, apart
    kept = _kept.get(int(module))
    if kept is None:
        raise UnsupportedModelError("A module of a compiled model is gone.")
    versions = [_version(tensor) for tensor in (*tensors, *weights)]
    result = kept.run(tensors, weights)
    _check(kept, result, tensors[like], dtype)
    if versions != [_version(tensor) for tensor in (*tensors, *weights)]:
        raise UnsupportedModelError(f"{_about(kept)}, and this call wrote to its inputs. {_ADVICE}")
    storages = {_memory(tensor) for tensor in (*tensors, *weights)}
    return result.clone() if _memory(result) in storages else result.contiguous()


def _like(
    tensors: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    module: Any,
    like: int,
    dtype: torch.dtype,
    flops: int,
    apart: bool,
) -> torch.Tensor:
    """What is known of the result of a kept module."""
    del weights, module, flops, apart
    return tensors[like].new_empty(tensors[like].shape, dtype=dtype)


_ADVICE = 'Give the model to another backend, or reuse its whole output: options={"cut": "output"}.'


def _about(kept: Kept) -> str:
    return (
        f"The module {kept.path} runs as one op, since its Python code depends on values of tensors"
    )


def _check(kept: Kept, result: Any, like: torch.Tensor, dtype: torch.dtype) -> None:
    """Check that a module returned what the graph was made for."""
    if isinstance(result, torch.Tensor):
        found = (tuple(result.shape), result.dtype, result.device)
        if found == (tuple(like.shape), dtype, like.device):
            return
        words = f"a tensor {found[0]} of {dtype_word(found[1])} on {found[2]}"
    else:
        words = f"a {type(result).__name__}"
    raise UnsupportedModelError(
        f"{_about(kept)}. In the first call it returned a tensor with the shape of an input and of "
        f"type {dtype_word(dtype)}, and now {words} for inputs of shape {tuple(like.shape)}. "
        f"{_ADVICE}"
    )


def dtype_word(dtype: torch.dtype) -> str:
    """The name of a type without the library."""
    return str(dtype).removeprefix("torch.")


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


for _name in ("run_module", "run_module.placed"):
    _library.impl(_name, _call, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pab_user::{_name}", _like, lib=_library)
