"""What this library needs of Dynamo and Inductor besides compiling: locks, stack and caches.

These may use private torch APIs: this file, ``passes/graph/tracing.py``, ``compile/lower.py`` and
the files in ``dynamo_rules``.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import fx

from .dynamo_rules import follows_more, state_sizes

_MODULE_FILE = torch.nn.modules.module.__file__
_PARTS = ("<lambda>", "<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>")
_LIBRARIES = tuple(os.path.join(os.path.dirname(file), "") for file in (torch.__file__, __file__))


@contextmanager
def compiling() -> Iterator[None]:
    """Trace and compile in one thread at a time, since torch's tracers are not thread-safe.

    It takes Dynamo's own lock, so that Dynamo does not trace in another thread meanwhile. It also
    sets Dynamo's flag for compiling. Without the flag, a compiled model that runs in another thread
    would count as a part of the traced function, and fail.
    """
    from torch._dynamo.convert_frame import compile_lock

    with compile_lock:
        before = torch.compiler._is_compiling_flag
        torch.compiler._is_compiling_flag = True
        try:
            yield
        finally:
            torch.compiler._is_compiling_flag = before


def torchs_own_functions() -> AbstractContextManager[None]:
    """Ops on tensors of a subclass do what torch does, not what the subclass defines.

    The class of a weight may have functions of its own (``__torch_function__``). Dynamo traces
    them, so the ops of a graph are torch's, and must not go through the class a second time.
    """
    return torch._C.DisableTorchFunctionSubclass()


def with_weights(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor]
) -> AbstractContextManager[None]:
    """Let a module have other weights for a while. Dynamo traces it; the graph gets no writes.

    ``torch.func.functional_call`` does the same around a call of the module. This serves a function
    that the module calls.

    Args:
        module: the module.
        weights: name -> what takes the place of a parameter or buffer.
    """
    from torch.nn.utils import stateless

    return stateless._reparametrize_module(module, dict(weights))


def known_modes() -> tuple[str, ...]:
    """The values of torch.compile's ``mode``."""
    from torch._inductor import list_mode_options

    return tuple(list_mode_options())


def known_backends() -> list[str]:
    """The names of all backends that torch knows or finds installed."""
    from torch._dynamo import list_backends

    return list_backends(exclude_tags=())


def inductor_cache_folder() -> str:
    """Where Inductor keeps what it compiled."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def trace_once(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    look: Callable[[fx.GraphModule, Sequence[Any]], Any],
) -> None:
    """Trace a function with Dynamo. ``look`` gets every graph with its inputs, and runs it.

    The trace is removed from Dynamo's caches, so an existing compilation of the model stays valid.
    """
    from torch._dynamo.eval_frame import reset_code

    def backend(graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        state_sizes(graph_module)

        def run(*inputs: Any) -> Any:
            return look(graph_module, inputs)

        return run

    def traced(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    try:
        # Static, since sizes that earlier calls made dynamic would be symbols.
        torch.compile(traced, backend=follows_more(backend), dynamic=False)(*args, **kwargs)
    finally:
        reset_code(traced.__code__)


def forget(function: Callable[..., Any]) -> None:
    """Drop all that Dynamo compiled of a function, so that it does not count against its limit."""
    from torch._dynamo.eval_frame import reset_code

    while isinstance(function, functools.partial):
        function = function.func
    if (code := getattr(function, "__code__", None)) is not None:
        reset_code(code)


@dataclass(frozen=True, eq=False)
class ModelCall:
    """The call of a compiled model to which the running code belongs.

    Attributes:
        token: an object that only this call has.
        args: positional arguments.
        keywords: keyword arguments.
        function: the function, or the method of a module, that was called.
        is_root: whether the running graph belongs to the model's own ``forward``. If not, it
            belongs to a function that ``forward`` calls.
        compilation: Dynamo's object for the ``torch.compile`` whose result was called.
    """

    token: object
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    function: Any
    is_root: bool
    compilation: object = None

    @property
    def module(self) -> torch.nn.Module | None:
        """The module that was called; None if it was a function."""
        owner = getattr(self.function, "__self__", None)
        return owner if isinstance(owner, torch.nn.Module) else None

    @property
    def owner(self) -> Any:
        """What was called: a module, the object of another method, or a function."""
        return getattr(self.function, "__self__", self.function)

    def arguments(self) -> dict[str, Any]:
        """The arguments that have names."""
        names = self.names() if self.args else ()
        return {**dict(zip(names, self.args, strict=False)), **self.keywords}

    def names(self) -> tuple[str, ...]:
        """Names of the positional arguments; ``()`` if they are unknown."""
        function = self.function if self.module is None else self.module.forward
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return ()
        return tuple(
            p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        )


def model_calls() -> list[ModelCall]:
    """Find the calls of compiled models on Python's stack, the innermost first.

    Dynamo starts every such call in a wrapper, which stays on the stack until the call is over. The
    wrapper has the caller's arguments. Its dict of keyword arguments is a new one in each call. The
    list is empty if there is no wrapper.
    """
    from torch._dynamo import eval_frame

    found: list[ModelCall] = []
    frame, num_frames = sys._getframe(1), 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == eval_frame.__file__:
            if code.co_name == "compile_wrapper":
                found += _model_call(frame.f_locals, num_frames)
            num_frames = 0  # the frames so far are of this library
        elif code.co_filename not in (_MODULE_FILE, __file__):  # these only call the model's
            num_frames += 1
        frame = frame.f_back
    return found


def callers() -> list[FrameType]:
    """The frames around the innermost call of a compiled model, the innermost first.

    Frames of torch and of this library do not count. Neither do comprehensions and lambdas, which
    are parts of a function.
    """
    from torch._dynamo import eval_frame

    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == eval_frame.__file__ and code.co_name == "compile_wrapper":
            frames += _outside(frame.f_back)
            break
        frame = frame.f_back
    return frames


def _outside(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        code = frame.f_code
        if code.co_name not in _PARTS and not code.co_filename.startswith(_LIBRARIES):
            yield frame
        frame = frame.f_back


def _model_call(variables: Mapping[str, Any], num_frames: int) -> list[ModelCall]:
    args, keywords = variables.get("args"), variables.get("kwargs")
    if not isinstance(args, tuple) or not isinstance(keywords, dict):
        return []
    function, compilation = variables.get("fn"), variables.get("self")
    return [ModelCall(keywords, args, keywords, function, num_frames <= 1, compilation)]


@dataclass(frozen=True)
class Compilation:
    """How a module was compiled.

    Attributes:
        options: the ``options`` object of the ``torch.compile`` call.
        dynamic: its ``dynamic``.
        context: Dynamo's object for the call.
    """

    options: dict[str, Any] | None
    dynamic: bool | None = None
    context: object = None


def compilation_of(model: Any) -> Compilation | None:
    """How something was compiled, by ``torch.compile`` or in place; None if it was not."""
    for candidate in _compile_contexts(model):
        backend = getattr(candidate, "callback", None)
        while backend is not None and not hasattr(backend, "kwargs"):
            backend = getattr(backend, "_torchdynamo_orig_backend", None)
        if backend is not None:
            dynamic = getattr(candidate, "_dynamic", None)
            return Compilation(backend.kwargs.get("options"), dynamic, candidate)
    return None


def _compile_contexts(model: Any) -> Iterator[Any]:
    """Where Dynamo stores the backend: on the wrapper module, or in the closure of the call."""
    yield getattr(model, "dynamo_ctx", None)
    own_forward = getattr(model, "__dict__", {}).get("forward")
    compiled = getattr(model, "_compiled_call_impl", None)
    for call in (compiled, getattr(compiled, "__wrapped__", None), model, own_forward):
        if call is model and not hasattr(model, "_torchdynamo_orig_callable"):
            continue
        for cell in getattr(call, "__closure__", None) or ():
            yield cell.cell_contents


def leave_open(tensor: torch.Tensor, dimensions: Sequence[int]) -> torch.Tensor:
    """The same tensor as another object, of which Dynamo leaves the size of dimensions open."""
    from torch._dynamo.decorators import maybe_mark_dynamic

    other = tensor.detach()
    maybe_mark_dynamic(other, list(dimensions))
    return other


def inner_callables(model: Any) -> Iterator[Any]:
    """A callable, and what Dynamo wrapped in it: modules, functions, the owners of methods."""
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        found = waiting.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        inside = ("_orig_mod", "_torchdynamo_orig_callable", "__self__")
        waiting += [getattr(found, name, None) for name in inside]


def used_up(model: Any) -> str:
    """What is to be said if Dynamo has as many compilations of a model as it keeps; else ``""``."""
    from torch._dynamo import config, eval_frame

    listed = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    if listed is None:
        return ""
    for found in inner_callables(model):
        function = getattr(found, "forward", found)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is not None and len(listed(code)) >= config.recompile_limit:
            return (
                f"Dynamo keeps {config.recompile_limit} compilations of a model's code, and has so "
                "many: calls that none of them fits run uncompiled, and nothing counts them. Raise "
                "torch.compiler.config.recompile_limit; without dynamic=False, sizes share a "
                "compilation"
            )
    return ""


def why_uncompiled() -> str:
    """Why torch runs nothing compiled just now; ``""`` if it does."""
    from torch._dynamo import config, eval_frame

    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        return "the environment variable TORCHDYNAMO_DISABLE is 1"
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return "the environment variable TORCH_COMPILE_DISABLE is 1"
    if config.disable:
        return "torch._dynamo.config.disable is set"
    stance = eval_frame._stance.stance
    if stance in ("force_eager", "eager_on_recompile", "fail_on_recompile"):
        return f"torch.compiler.set_stance({stance!r}) is in force"
    return ""


def inductor_cache() -> str | None:
    """The folder of Inductor's caches on disk; None if they are switched off."""
    from torch._inductor import config

    if config.force_disable_caches or not config.fx_graph_cache:
        return None
    return inductor_cache_folder()
