"""What is asked of Dynamo and Inductor besides compiling: their locks, their stack, their caches.

One of the three files that may use private torch APIs. The others are ``passes/graph/tracing.py``
and ``compile/lower.py``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

_MODULE_FILE = torch.nn.modules.module.__file__


@contextmanager
def compiling() -> Iterator[None]:
    """Trace and compile in one thread at a time: torch's tracers are not safe in several.

    Takes Dynamo's own lock, since Dynamo must not trace in another thread meanwhile, and says that
    it compiles as Dynamo does: compiled models that run in other threads would otherwise be taken
    for a part of what is being traced, and refuse.
    """
    from torch._dynamo.convert_frame import compile_lock

    with compile_lock:
        before = torch.compiler._is_compiling_flag
        torch.compiler._is_compiling_flag = True
        try:
            yield
        finally:
            torch.compiler._is_compiling_flag = before


def known_modes() -> tuple[str, ...]:
    """The values of torch.compile's ``mode``."""
    from torch._inductor import list_mode_options

    return tuple(list_mode_options())


def trace_once(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    look: Callable[[fx.GraphModule, Sequence[Any]], Any],
) -> None:
    """Trace a function with Dynamo and let ``look`` run every graph, given its inputs.

    Nothing of it stays in Dynamo's caches, so an existing compilation of the model is untouched.
    """
    from torch._dynamo.eval_frame import reset_code

    def backend(graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def run(*inputs: Any) -> Any:
            return look(graph_module, inputs)

        return run

    def traced(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    try:
        # Static: sizes that earlier calls made dynamic would reach the passes as symbols.
        torch.compile(traced, backend=backend, dynamic=False)(*args, **kwargs)
    finally:
        reset_code(traced.__code__)


@dataclass(frozen=True, eq=False)
class ModelCall:
    """The call of a compiled model that the running code is a part of.

    Attributes:
        token: an object that belongs to this one call.
        args: positional arguments.
        keywords: keyword arguments.
        function: what was called: a function, or the method of a module.
        is_root: whether the running graph belongs to the model's own ``forward``, not to a function
            that it calls.
    """

    token: object
    args: tuple[Any, ...]
    keywords: dict[str, Any]
    function: Any
    is_root: bool

    def names(self) -> tuple[str, ...]:
        """Names of the positional arguments, as far as they are known."""
        owner = getattr(self.function, "__self__", None)
        function = owner.forward if isinstance(owner, torch.nn.Module) else self.function
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return ()
        return tuple(
            p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        )


def model_calls() -> list[ModelCall]:
    """Find the calls of compiled models on Python's stack, the innermost first.

    Dynamo enters every such call through one wrapper, which stays on the stack until the call is
    over: its arguments are the caller's, and its dict of keyword arguments is made anew each time.
    Empty where there is no such wrapper.
    """
    from torch._dynamo import eval_frame

    found: list[ModelCall] = []
    frame, num_frames = sys._getframe(1), 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == eval_frame.__file__:
            if code.co_name == "compile_wrapper":
                found += _model_call(frame.f_locals, num_frames)
            num_frames = 0  # those before are ours: Dynamo calls graphs through a function
        elif code.co_filename not in (_MODULE_FILE, __file__):  # calls through to the model's own
            num_frames += 1
        frame = frame.f_back
    return found


def _model_call(variables: Mapping[str, Any], num_frames: int) -> list[ModelCall]:
    args, keywords = variables.get("args"), variables.get("kwargs")
    if not isinstance(args, tuple) or not isinstance(keywords, dict):
        return []
    return [ModelCall(keywords, args, keywords, variables.get("fn"), num_frames <= 1)]


@dataclass(frozen=True)
class Compilation:
    """What a compiled module was compiled with: the ``options`` object of that call."""

    options: dict[str, Any] | None


def compilation_of(model: Any) -> Compilation | None:
    """How a module was compiled, with ``torch.compile`` or in place; None where it was not."""
    for candidate in _compile_contexts(model):
        backend = getattr(candidate, "callback", None)
        while backend is not None and not hasattr(backend, "kwargs"):
            backend = getattr(backend, "_torchdynamo_orig_backend", None)
        if backend is not None:
            return Compilation(backend.kwargs.get("options"))
    return None


def _compile_contexts(model: Any) -> Iterator[Any]:
    """Where Dynamo keeps the backend: on the wrapper module, or in the closure of the call."""
    yield getattr(model, "dynamo_ctx", None)
    in_place = getattr(model, "_compiled_call_impl", None)
    for cell in getattr(in_place, "__closure__", None) or ():
        yield cell.cell_contents
