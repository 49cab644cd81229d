"""Lowering: the inner compiler compiles every distinct piece once.

Pieces with the same structure, shapes, strides and dtypes share one compiled function. Weights are
inputs. The inner compiler gets plain ``fx.GraphModule``s, so its caches on disk do not depend on
this library.

This file may use private torch APIs. It imports them when it needs them, so that
``import pab_compile`` is fast.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from pab_compile.passes.graph.opening import OpenPiece
from pab_compile.passes.graph.tracing import with_code

from .background import WarmingFunction
from .lazy_function import Function, LazyFunction
from .open_function import OpenFunction
from .progress import CompileProgress

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


class PieceCompiler:
    """Compiles graph modules that return tuples: equal ones once, each at its first call.

    Args:
        inner: ``inductor``, ``eager``, the name of a registered backend, or a backend.
        mode: torch.compile's mode, for Inductor.
        progress: counts the pieces.
        in_background: whether pieces run uncompiled until a thread has compiled them.

    Attributes:
        compile_seconds: what the inner compiler took so far.
        waited_seconds: the part of it that calls waited for.
        num_asked: how often a piece was asked for, equal ones too.
    """

    def __init__(
        self,
        inner: str | Callable[..., Any],
        mode: str | None,
        progress: CompileProgress,
        in_background: bool = False,
    ) -> None:
        self._inner = inner
        self._mode = mode
        self._progress = progress
        self._in_background = in_background
        self._warming_functions: weakref.WeakSet[WarmingFunction] = weakref.WeakSet()
        # Programs hold their pieces. A piece that none of them needs any more is dropped.
        self._compiled: weakref.WeakValueDictionary[str, Function] = weakref.WeakValueDictionary()
        self._open: weakref.WeakValueDictionary[str, OpenFunction] = weakref.WeakValueDictionary()
        self._warming: threading.Thread | None = None
        self.compile_seconds = self.waited_seconds = 0.0
        self.num_asked = 0
        self._num_pieces = 0

    @property
    def reuses_output_memory(self) -> bool:
        """Whether the next call of a piece may overwrite its last outputs, as with CUDA graphs."""
        return self._inner == "inductor" and bool(self._patches().get("triton.cudagraphs"))

    @property
    def opens_sizes(self) -> bool:
        """Whether pieces may be compiled for open sizes."""
        return self._inner in ("eager", "inductor")

    @property
    def caches_on_disk(self) -> bool:
        """Whether the inner compiler keeps what it made for other processes."""
        return self._inner == "inductor"

    @property
    def num_pieces(self) -> int:
        """Number of distinct pieces so far."""
        return self._num_pieces

    @property
    def num_waiting(self) -> int:
        """Number of pieces that still run uncompiled."""
        return sum(not function.is_ready for function in self._warming_functions)

    def warm_up(self, args: Sequence[Any]) -> None:
        """Start, in a thread, what Inductor does once per process.

        On a CPU it asks the C++ compiler for the vector instructions, which takes seconds.
        """
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        on_cpu = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args)
        if self._inner == "inductor" and on_cpu and self._warming is None:
            self._warming = threading.Thread(target=pick_vec_isa, daemon=True)
            self._warming.start()

    def compile(self, graph_module: fx.GraphModule, key: str) -> Function:
        """The compiled function of a piece. Its first call runs the inner compiler.

        Args:
            graph_module: the piece.
            key: its ``structure_key``.
        """
        self.num_asked += 1
        function = self._compiled.get(key)
        if function is None:
            function = self._compiled[key] = self._lazily(graph_module)
            self._count_piece()
        return function

    def compile_open(self, piece: OpenPiece) -> OpenFunction:
        """The compiled function of a piece for open sizes."""
        self.num_asked += 1
        function = self._open.get(piece.key)
        if function is None:
            lazy = self._lazily(piece.graph_module, piece)
            function = self._open[piece.key] = OpenFunction(piece, lazy, self.compile)
            self._count_piece()
        return function

    def compile_whole(
        self, graph_module: fx.GraphModule, args: Sequence[Any]
    ) -> Callable[..., Any]:
        """Compile a whole Dynamo graph with the inner compiler."""
        return self._run_inner(graph_module, args)

    def _count_piece(self) -> None:
        self._num_pieces += 1
        if not self._in_background:
            self._progress.add_pieces(1)

    def _lazily(self, graph_module: fx.GraphModule, piece: OpenPiece | None = None) -> LazyFunction:
        if self._in_background:
            # The inner compiler changes the graph, but not the method that it had. The code of the
            # method must be written before.
            graph_module = with_code(graph_module)
            uncompiled = graph_module.forward
            prepare = functools.partial(self._prepared, graph_module, piece)
            function = WarmingFunction(prepare, uncompiled)
            self._warming_functions.add(function)
            return function

        def compiled(args: Sequence[Any]) -> Function:
            start = time.perf_counter()
            function = self._run_inner(with_code(graph_module), args, piece)
            took = time.perf_counter() - start
            self.compile_seconds += took
            self.waited_seconds += took
            self._progress.finish_piece(took)
            return function

        return LazyFunction(compiled)

    def _prepared(
        self, graph_module: fx.GraphModule, piece: OpenPiece | None, args: Sequence[Any]
    ) -> Callable[[], Function]:
        """What compiles a piece with Inductor, without its inputs."""
        examples = _examples(args, piece)

        def compiled() -> Function:
            start = time.perf_counter()
            function = self._run_inductor(graph_module, *examples)
            self.compile_seconds += time.perf_counter() - start
            return function

        return compiled

    def _patches(self) -> dict[str, Any]:
        from torch._inductor import list_mode_options

        return dict(list_mode_options(self._mode)) if self._mode else {}

    def _run_inner(
        self, graph_module: fx.GraphModule, args: Sequence[Any], piece: OpenPiece | None = None
    ) -> Function:
        if self._inner == "eager":
            return graph_module.forward
        if self._inner == "inductor":
            return self._run_inductor(graph_module, *_examples(args, piece))
        from torch._dynamo.backends.registry import lookup_backend

        backend = lookup_backend(self._inner) if isinstance(self._inner, str) else self._inner
        return backend(graph_module, list(args))

    def _run_inductor(
        self, graph_module: fx.GraphModule, mode: FakeTensorMode, fakes: Sequence[Any]
    ) -> Function:
        from torch._guards import TracingContext, tracing
        from torch._inductor.compile_fx import compile_fx

        if self._warming is not None:
            self._warming.join()
        with tracing(TracingContext(mode)):
            return compile_fx(graph_module, fakes, config_patches=self._patches())  # type: ignore[return-value]


def _examples(args: Sequence[Any], piece: OpenPiece | None) -> tuple[FakeTensorMode, Sequence[Any]]:
    """Fake inputs of a piece for Inductor."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if piece is not None:
        return piece.opened.mode, piece.examples
    # Inductor caches only graphs with a shape environment on disk. It may be empty.
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fakes = [
        mode.from_tensor(arg, static_shapes=True) if isinstance(arg, torch.Tensor) else arg
        for arg in args
    ]
    return mode, fakes
