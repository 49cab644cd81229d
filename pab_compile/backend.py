"""The backend: ``torch.compile(model, backend="pab")``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.graph.capture import break_reason
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.join import Origin
from pab_compile.passes.graph.measured import measure
from pab_compile.passes.graph.printer import format_graph

from .calibration.observe import current_observer
from .compile.analysis import nothing_found
from .compile.lower import PieceCompiler
from .compile.program import PlainProgram, Runnable, compile_program
from .compile.progress import CompileProgress
from .dynamo import compiling
from .errors import GradModeError
from .options import Options, parse_options
from .plans.plan import Plan
from .ranks.mesh import fingerprint, named_peers, own_peers, peers_of
from .ranks.team import Team, team_of
from .report.explanation import Finding
from .runtime.forward import Forward
from .runtime.scope import current_scope


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
    """One Dynamo graph, specialised to the sizes and the place in a forward of its calls."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: Mapping[str, Any] | None,
        mode: str | None,
    ) -> None:
        self._measured = measure(graph_module)
        self._graph_module = self._measured.rest
        examples = (*example_inputs, *self._measured.examples)
        self._inputs = Inputs.of(self._graph_module, examples)
        self._given = (options, mode)
        self._break_reason = break_reason(graph_module)
        self._programs: dict[tuple[Any, ...], Runnable] = {}
        self._prepared: tuple[Options, Plan, PieceCompiler] | None = None
        self._is_checked = False
        self._team: Team | None = None
        self.progress = CompileProgress()

    def __call__(self, *args: Any) -> Any:
        """Run the graph in the forward that calls it."""
        forwards = current_scope().forwards
        forward = forwards.current()
        args = self._extended(forward, args)
        tensors = self._inputs.tensors(args)
        origins = forward.origins(self._inputs, tensors)
        alone = not forward.visited and forward.starts_at_root and not self._break_reason
        if self._team is not None:
            self._team.begin()
        observer = current_observer()
        num_samples = None if observer is None else observer.num_samples
        key = (alone, origins, num_samples, self._inputs.specialisation(args))
        if key not in self._programs:
            with compiling():
                if key not in self._programs:
                    self._programs[key] = self._compile(args, origins, alone, num_samples)
        program = self._programs[key]
        if not forward.visited and not alone:
            self._check_before(forwards.before(forward), program)
        forward.breaks.append(self._break_reason)
        self.progress.start()
        try:
            return program(forward, args, tensors)
        except BaseException as error:
            forward.fail()
            if self._team is not None:
                self._team.fail(error)
            raise
        finally:
            if alone:
                forwards.end(forward)
            self.progress.stop()

    def _extended(self, forward: Forward, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Dynamo's inputs, with the values that sizes depend on."""
        try:
            return self._measured.extend(args)
        except BaseException:
            forward.fail()
            raise

    def _compile(
        self,
        args: Sequence[Any],
        origins: tuple[tuple[Origin | None, ...], frozenset[int]],
        alone: bool,
        num_samples: int | None,
    ) -> Runnable:
        """Compile; where several ranks share the model, only what all of them compile alike."""
        if self._team is None:
            self._team = team_of(named_peers(self._given[0])) or team_of(
                own_peers(self._graph_module), exchanges=False
            )
        team = self._team
        if team is not None and not team.exchanges and not team.is_first(self._given[0]):
            return self._compile_alone(args, origins, alone, num_samples)
        try:
            program = self._compile_alone(args, origins, alone, num_samples)
        except Exception as error:
            if team is not None:
                team.agree("", error)
            raise
        if team is not None:
            options, plan, _ = self._options_plan_compiler()
            # In print, since a structure key holds addresses, which differ between processes.
            graph = format_graph(program.part.graph_module) if program.part else ""
            if not team.exchanges:  # graphs of a model's own ranks may name the rank
                graph = repr([(site.kind, site.can_broadcast) for site in program.sites])
            team.agree(fingerprint(options, plan, graph))
        return program

    def _compile_alone(
        self,
        args: Sequence[Any],
        origins: tuple[tuple[Origin | None, ...], frozenset[int]],
        alone: bool,
        num_samples: int | None,
    ) -> Runnable:
        options, plan, compiler = self._options_plan_compiler()
        peers_of(  # raises where there are none
            options.mesh, options.sequence_parallel, options.batch_mesh, options.batch_parallel
        )
        team = self._team
        grid = team.grid if team is not None and team.exchanges else None
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
        graph, whole = self._graph_module, self._given[0]
        try:
            return compile_program(
                graph, args, origins, options, plan, compiler, whole, alone, grid, num_samples
            )
        except UnsupportedModelError as error:
            self._refuse(error)
            whole = compiler.compile_whole(self._graph_module, args)
            return PlainProgram(None, whole, Finding(reason=str(error)))

    def _check_before(self, before: Iterable[Forward], program: Runnable) -> None:
        """Look at the last forward that began like this one: what it is shows only now."""
        alike = [other for other in before if other.visited[:1] == [program]]
        if not alike or alike[0].failed:
            return
        last, length = alike[0], len(alike[0].visited)
        if any(other.visited[:length] == last.visited != other.visited for other in alike[1:]):
            last.fail()  # broken off: others went on from there
        elif not self._is_checked and (
            not last.breaks[-1] or any(other.visited == last.visited for other in alike[1:])
        ):
            self._is_checked = True
            self._check_whole(last)

    def _check_whole(self, forward: Forward) -> None:
        """Look once at all graphs of a forward that is over."""
        sites = [site for ran in forward.visited for site in ran.sites]
        if sites:
            self._options_plan_compiler()[1].check(sites)
        else:
            self._refuse(nothing_found(forward.findings, forward.breaks))

    def _refuse(self, error: UnsupportedModelError) -> None:
        """Raise, or warn, as the user wants it."""
        if self._options_plan_compiler()[0].on_unsupported == "raise":
            raise error
        warnings.warn(f"pab: compiled without reuse. {error}", stacklevel=5)

    def _options_plan_compiler(self) -> tuple[Options, Plan, PieceCompiler]:
        if self._prepared is None:
            options = parse_options(*self._given)
            compiler = PieceCompiler(options.inner, options.mode, self.progress)
            self._prepared = (options, options.make_plan(), compiler)
        return self._prepared
