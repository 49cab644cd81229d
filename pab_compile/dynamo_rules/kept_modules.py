"""Dynamo keeps a module whole where its Python code depends on values of tensors.

::

    counts = experts_of_tokens.bincount().cpu().numpy()  # in a module of every block
    for expert, count in zip(self.experts, counts): ...

Dynamo breaks the graph there. In a loop over blocks it then does not compile the forward at all.
For this backend the trace starts again, and the innermost module around the break becomes one op,
which runs the module as it is (``passes.graph.kept``). So do all modules of its class.

Before, the module runs once, on the values that it really gets. It is kept only if nothing can be
lost: it gets tensors alone and returns one new tensor with the shape of one of them; it writes to
no tensor or attribute, draws no random numbers, and holds no attention. Otherwise the graph breaks,
as it does without this.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.passes.graph.kept import Kept, keep, named_tensors
from pab_compile.passes.graph.origin import short_path

from .kept_once import Learnt, learn, shape_of_module
from .marks import is_marked

_BREAKS = re.compile(
    r"data.dependent|dynamic shape operator|Tensor\.(item|tolist)\(\)", re.IGNORECASE
)
_LEARNT = "_pab_learnt"  # on what Dynamo keeps through all attempts to trace one frame


@functools.cache
def extend_dynamo() -> None:
    """Extend torch, once per process. Without this, graphs break inside such modules."""
    try:
        from torch._dynamo.exc import RestartAnalysis, Unsupported, UserError
        from torch._dynamo.variables.nn_module import UnspecializedNNModuleVariable as Variable
    except ImportError:
        return
    call = Variable.call_function

    @functools.wraps(call)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        log = getattr(tx, "speculation_log", None)
        if log is None or not is_marked(tx.output.compiler_fn):
            return call(self, tx, args, kwargs)
        learnt: dict[type, Learnt | None] = vars(log).setdefault(_LEARNT, {})
        known = learnt.get(type(self.value))
        if known is not None and (given := _given(self, tx, args, kwargs)) is not None:
            return _emit(self, tx, given, known)
        last = next(iter(reversed(tx.output.graph.nodes)), None)
        try:
            return call(self, tx, args, kwargs)
        except (Unsupported, UserError) as error:
            first = str(error).partition("\n")[0]
            if not _BREAKS.search(first) or getattr(error, "_pab_seen", False):
                raise
            error._pab_seen = True  # type: ignore[attr-defined]  # modules around it are not tried
            if type(self.value) in learnt:
                raise
            learnt[type(self.value)] = None
            if (given := _given(self, tx, args, kwargs)) is None:
                raise
            learnt[type(self.value)] = learn(
                self.value, tx.output, given.values(), given.names, last
            )
            if learnt[type(self.value)] is None:
                raise
            log.clear()
            raise RestartAnalysis(restart_reason="a module is kept whole") from None

    Variable.call_function = call_function  # type: ignore[method-assign]


@dataclass(frozen=True)
class _Given:
    """What a module is called with: variables of Dynamo, all of which are tensors."""

    tensors: Sequence[Any]
    names: tuple[str, ...]
    weights: Mapping[str, Any]

    def values(self) -> list[Any]:
        """The nodes of tensors and weights."""
        return [each.as_proxy().node for each in (*self.tensors, *self.weights.values())]


def _given(module: Any, tx: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Given | None:
    """The call of a module, if it can be an op; else None."""
    if not module.source or tx.output.current_tracer.parent is not None:
        return None
    named = {f"{number}": arg for number, arg in enumerate(args)} | dict(kwargs)
    found = {name: _realized(value) for name, value in named.items()}
    found = {name: value for name, value in found.items() if not _is_none(value) or name.isdigit()}
    weights = _weights(module, tx)
    if weights is None or not found or not all(map(_is_tensor, found.values())):
        return None
    names = tuple("" if name.isdigit() else name for name in found)
    return _Given(list(found.values()), names, weights)


def _weights(module: Any, tx: Any) -> dict[str, Any] | None:
    """The weights and buffers of a module, as Dynamo sees them; None if one is no plain tensor."""
    found: dict[str, Any] = {}
    for name, tensor in named_tensors(module.value):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            return None
        variable = module
        for part in name.split("."):
            variable = _realized(variable.var_getattr(tx, part))
        if not _is_tensor(variable):
            return None
        found[name] = variable
    return found


def _emit(module: Any, tx: Any, given: _Given, known: Learnt) -> Any:
    """One op in the place of a module. The module may not change while the graph holds."""
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.variables.builder import wrap_fx_proxy
    from torch._dynamo.variables.nn_module import record_nn_module_stack

    shape = shape_of_module(module.value)

    def has_shape(other: Any) -> bool:
        return shape_of_module(other) == shape

    def guard(builder: GuardBuilder, wanted: Any) -> None:
        words = [f"{wanted.name} has the same modules and weights as when it was traced"]
        builder.get_guard_manager(wanted).add_lambda_guard(has_shape, words, wanted.user_stack)

    install_guard(module.source.make_guard(guard))
    tensors = [each.as_proxy() for each in given.tensors]
    dtype = known.dtype or given.tensors[known.like].as_proxy().node.meta["example_value"].dtype
    devices = {"cpu", *(t.node.meta["example_value"].device.type for t in tensors)}
    kept = Kept(
        weakref.ref(module.value),
        short_path(module.source.name),
        tuple(given.weights),
        given.names,
        tuple(
            (d, torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in sorted(devices)
        ),
    )
    weights = [each.as_proxy() for each in given.weights.values()]
    args = (tensors, weights, keep(kept), known.like, dtype, known.flops, known.apart)
    place = module.get_nn_module_stack_source()
    with record_nn_module_stack(str(id(module.value)), place, tx, module.value):
        op = torch.ops.pab_user.run_module.default
        return wrap_fx_proxy(tx, tx.output.create_proxy("call_function", op, args, {}))


def _realized(variable: Any) -> Any:
    return variable.realize() if hasattr(variable, "realize") else variable


def _is_tensor(variable: Any) -> bool:
    from torch._dynamo.variables.tensor import TensorVariable

    return type(variable) is TensorVariable


def _is_none(variable: Any) -> bool:
    return variable.is_python_constant() and variable.as_python_constant() is None
