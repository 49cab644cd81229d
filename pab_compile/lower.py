"""Lowering: every distinct piece is handed to the inner compiler once.

Pieces with the same structure, shapes, strides and dtypes share one compiled function; weights are
inputs. The graphs are plain ``fx.GraphModule``s by the time the inner compiler sees them, so its
caches on disk hold nothing of ours. One of the two files that may use private torch APIs (the other
is ``passes/capture.py``).
"""

from __future__ import annotations

import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo import eval_frame
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.eval_frame import reset_code
from torch._guards import TracingContext, tracing
from torch._inductor import list_mode_options
from torch._inductor.compile_fx import compile_fx
from torch._inductor.cpu_vec_isa import pick_vec_isa
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .progress import CompileProgress

Function = Callable[..., Sequence[torch.Tensor]]

_EVAL_FRAME_FILE = eval_frame.__file__
_MODULE_FILE = torch.nn.modules.module.__file__


@contextmanager
def compiling() -> Iterator[None]:
    """Trace and compile in one thread at a time: torch's tracers are not safe in several.

    Takes Dynamo's own lock, since Dynamo must not trace in another thread meanwhile, and says that
    it compiles as Dynamo does: compiled models that run in other threads would otherwise be taken
    for a part of what is being traced, and refuse.
    """
    with compile_lock:
        before = torch.compiler._is_compiling_flag
        torch.compiler._is_compiling_flag = True
        try:
            yield
        finally:
            torch.compiler._is_compiling_flag = before


class PieceCompiler:
    """Compiles graph modules that return tuples; equal ones only once, and only when called.

    Args:
        inner: ``inductor``, ``eager``, the name of a registered backend, or a backend.
        mode: torch.compile's mode, for Inductor.
        progress: told when a piece starts and ends compiling.
    """

    def __init__(
        self, inner: str | Callable[..., Any], mode: str | None, progress: CompileProgress
    ) -> None:
        self._inner = inner
        self._mode = mode
        self._progress = progress
        self._compiled: dict[str, Function] = {}
        self._warming: threading.Thread | None = None
        self.compile_seconds = 0.0

    @property
    def reuses_output_memory(self) -> bool:
        """Whether a piece's next call may overwrite its last outputs, as CUDA graphs do."""
        return self._inner == "inductor" and bool(self._patches().get("triton.cudagraphs"))

    @property
    def num_pieces(self) -> int:
        """Number of distinct pieces."""
        return len(self._compiled)

    def warm_up(self, args: Sequence[Any]) -> None:
        """Begin, beside the passes, what Inductor does once per process.

        On a CPU it asks the C++ compiler which vector instructions there are, which takes seconds.
        """
        on_cpu = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args)
        if self._inner == "inductor" and on_cpu and self._warming is None:
            self._warming = threading.Thread(target=pick_vec_isa, daemon=True)
            self._warming.start()

    def compile(self, graph_module: fx.GraphModule, key: str) -> Function:
        """The compiled function of a piece; the inner compiler runs at its first call.

        Args:
            graph_module: the piece.
            key: its ``structure_key``.
        """
        if key not in self._compiled:
            self._compiled[key] = self._lazily(graph_module)
            self._progress.add_pieces(1)
        return self._compiled[key]

    def compile_whole(
        self, graph_module: fx.GraphModule, args: Sequence[Any]
    ) -> Callable[..., Any]:
        """Hand a whole Dynamo graph to the inner compiler as it is."""
        return self._run_inner(graph_module, args)

    def _lazily(self, graph_module: fx.GraphModule) -> Function:
        compiled: list[Function] = []

        def function(*args: torch.Tensor) -> Sequence[torch.Tensor]:
            if not compiled:
                with compiling():
                    if not compiled:
                        start = time.perf_counter()
                        compiled.append(self._run_inner(graph_module, args))
                        self.compile_seconds += time.perf_counter() - start
                        self._progress.finish_piece()
            return compiled[0](*args)

        return function

    def _patches(self) -> dict[str, Any]:
        return dict(list_mode_options(self._mode)) if self._mode else {}

    def _run_inner(self, graph_module: fx.GraphModule, args: Sequence[torch.Tensor]) -> Function:
        if self._inner == "eager":
            return graph_module.forward
        if self._inner == "inductor":
            if self._warming is not None:
                self._warming.join()
            # Inductor's caches on disk take only graphs with a shape environment, if an empty one.
            mode = FakeTensorMode(shape_env=ShapeEnv())
            fakes = [
                mode.from_tensor(arg, static_shapes=True) if isinstance(arg, torch.Tensor) else arg
                for arg in args
            ]
            with tracing(TracingContext(mode)):
                return compile_fx(graph_module, fakes, config_patches=self._patches())  # type: ignore[return-value]
        backend = lookup_backend(self._inner) if isinstance(self._inner, str) else self._inner
        return backend(graph_module, list(args))


def process_group(name: Any) -> Any:
    """The process group that a functional collective names."""
    return torch.distributed.distributed_c10d._resolve_process_group(name)


def known_modes() -> tuple[str, ...]:
    """The values of torch.compile's ``mode``."""
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
    found: list[ModelCall] = []
    frame, num_frames = sys._getframe(1), 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _EVAL_FRAME_FILE:
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
