"""The backend: ``torch.compile(model, backend="pab")``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.capture import Inputs
from pab_compile.passes.errors import UnsupportedModelError

from .errors import GradModeError
from .lower import PieceCompiler, compiling
from .options import Options, parse_options
from .plan import Plan
from .program import CompiledProgram, compile_program
from .progress import CompileProgress


def pab(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Pyramid Attention Broadcast; a ``torch.compile`` backend.

    Args:
        graph_module: Dynamo's graph.
        example_inputs: tell numbers from tensors; the graph is captured at its first call.
        options: see ``pab_compile.Options``.
        mode: torch.compile's mode, handed to Inductor.

    Returns:
        A function of Dynamo's inputs. Errors about the model or the options are raised by its first
        call, so that they reach the user as they are.
    """
    return CompiledGraph(graph_module, example_inputs, options, mode)


class CompiledGraph:
    """One Dynamo graph, specialised to the sizes that it is called with."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: Mapping[str, Any] | None,
        mode: str | None,
    ) -> None:
        self._graph_module = graph_module
        self._inputs = Inputs.of(graph_module, example_inputs)
        self._given = (options, mode)
        self._programs: dict[tuple[Any, ...], CompiledProgram] = {}
        self._passed_through: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._prepared: tuple[Options, Plan, PieceCompiler] | None = None
        self.progress = CompileProgress()

    def __call__(self, *args: Any) -> Any:
        """Run one call of the model."""
        key = self._inputs.specialisation(args)
        if key in self._passed_through:
            return self._passed_through[key](*args)
        if key not in self._programs:
            with compiling():
                if key not in self._programs and key not in self._passed_through:
                    self._specialise(key, args)
            if key in self._passed_through:
                return self._passed_through[key](*args)
        self.progress.start()
        try:
            return self._programs[key](self._inputs.tensors(args))
        finally:
            self.progress.stop()

    def _specialise(self, key: tuple[Any, ...], args: Sequence[Any]) -> None:
        try:
            self._programs[key] = self._compile(args)
        except UnsupportedModelError as error:
            if self._options_plan_compiler()[0].on_unsupported == "raise":
                raise
            warnings.warn(f"pab: compiled without reuse. {error}", stacklevel=4)
            self._passed_through[key] = self._pass_through(args)

    def _options_plan_compiler(self) -> tuple[Options, Plan, PieceCompiler]:
        if self._prepared is None:
            options = parse_options(*self._given)
            compiler = PieceCompiler(options.inner, options.mode, self.progress)
            self._prepared = (options, options.make_plan(), compiler)
        return self._prepared

    def _compile(self, args: Sequence[Any]) -> CompiledProgram:
        options, plan, compiler = self._options_plan_compiler()
        if torch.is_grad_enabled() and any(
            isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args
        ):
            raise GradModeError(
                "The model was called with gradients enabled and inputs or weights that require "
                "them, but outputs of earlier steps have no gradient. Call it under "
                "torch.no_grad() or torch.inference_mode(), or freeze the weights with "
                "model.requires_grad_(False)."
            )
        compiler.warm_up(args)
        return compile_program(
            self._graph_module, args, options, plan, compiler, compilation=self._given[0]
        )

    def _pass_through(self, args: Sequence[Any]) -> Callable[..., Any]:
        _, _, compiler = self._options_plan_compiler()
        return compiler.compile_whole(self._graph_module, args)
