"""The backend: ``torch.compile(model, backend="pab")``."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from pab_compile.errors import InvariantError, PabError, UnsupportedModelError
from pab_compile.passes.errors import NoTimestepError
from pab_compile.passes.graph.capture import break_reason
from pab_compile.passes.graph.inputs import Inputs, callers_name_of
from pab_compile.passes.graph.join import are_fixed, at_all_sizes, earlier_sizes
from pab_compile.passes.graph.measured import measure
from pab_compile.passes.graph.number_inputs import take_numbers
from pab_compile.passes.graph.open_sizes import SizeInputs
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.sites.site import OUTPUT

from .calibration.observe import current_observer
from .compile.build import compile_program, plain_program
from .compile.call_checks import check_gradients, check_other_caches, defect
from .compile.call_roles import roles_of_call
from .compile.collecting import collector_paused
from .compile.compile_log import CompileLog
from .compile.floor import offered, takes_request
from .compile.input_roles import InputRoles
from .compile.lower import PieceCompiler
from .compile.model_fit import ModelFit
from .compile.number_clocks import NUMBER_WAS_NEW, number_clocks
from .compile.program import CompiledProgram
from .compile.program_store import ProgramStore
from .compile.progress import CompileProgress
from .compile.request import Request
from .compile.runnable import Runnable
from .compile.settings import Settings
from .compile.whole_forward import WholeForward
from .dynamo import compiling, model_calls
from .dynamo_rules import follows_more, state_sizes
from .forecast.auto import with_chosen_split
from .options import BACKGROUND, GivenOptions, parse_options
from .plans.form import Form
from .plans.live import LivePlan
from .ranks.agreement import Agreement
from .ranks.mesh import fingerprint, peers_of
from .ranks.team import Team
from .runtime.forward import Forward
from .runtime.layer_hooks import with_cause
from .runtime.misplaced import check_no_pipeline, with_place
from .runtime.scope import current_scope
from .runtime.weights import watch_hotswap

_MAX_OPEN = 8  # analyses of one graph for open sizes; then each further size has its own


@follows_more
def pab(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: GivenOptions = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Pyramid Attention Broadcast; a ``torch.compile`` backend.

    Args:
        graph_module: Dynamo's graph.
        example_inputs: show which inputs are numbers. The graph is captured at its first call.
        options: see ``pab_compile.Options``. A mapping, an ``Options`` object, JSON or YAML
            text, or a file.
        mode: the ``mode`` of ``torch.compile``, for Inductor.

    Returns:
        A function of Dynamo's inputs. Its first call raises errors about the model or the options,
        so that they reach the user unchanged.
    """
    return CompiledGraph(graph_module, example_inputs, options, mode)


class CompiledGraph:
    """One Dynamo graph: finds or compiles the program of each call, and runs it.

    There is one program per set of input sizes and per place in a forward.
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        example_inputs: Sequence[Any],
        options: GivenOptions,
        mode: str | None,
    ) -> None:
        state_sizes(graph_module)
        self._measured = measure(graph_module)
        self._numbers = take_numbers(self._measured.rest, callers_name_of)
        self._graph_module = self._numbers.graph_module
        examples = self._numbers.examples((*example_inputs, *self._measured.examples))
        self._inputs = Inputs.of(self._graph_module, examples)
        self._break_reason = break_reason(graph_module)
        self._given = (options, mode)
        self._programs = ProgramStore()
        self._sizes = SizeInputs.of(self._graph_module)
        self._open: dict[tuple[Any, ...], list[Runnable]] = {}
        self._progress = CompileProgress()
        self._agreement = Agreement(self._graph_module, options)
        self._whole_forward = WholeForward()
        self._model_fit = ModelFit()
        self._log = CompileLog()

    def __call__(self, *args: Any) -> Any:
        """Run the graph in the forward that calls it."""
        forwards = current_scope().forwards
        forward = forwards.current()
        request = self._request(forward, args)
        try:
            self._agreement.begin()
            return self._called(forward, request)
        finally:
            self._agreement.end()

    def _called(self, forward: Forward, request: Request) -> Any:
        """Run the graph in a forward."""
        forwards = current_scope().forwards
        program = self._program(request)
        plan = self._settings.plan_now
        note = self._model_fit.of(plan, forward.module())
        if not forward.visited and not request.alone:
            before = forwards.before(forward)
            axes = self._settings.options.axes
            error = self._whole_forward.check(before, program, plan, axes)
            if error is not None:
                self._refuse(error, stacklevel=3)
        forward.breaks.append(self._break_reason)
        try:
            outputs = self._run(program, forward, request)
            if note and forward.place is not None:
                forward.place.generation.note(note)
            return outputs
        finally:
            if request.alone:
                forwards.end(forward)

    def _request(self, forward: Forward, args: tuple[Any, ...]) -> Request:
        """The graph, with its inputs and their origins in the forward."""
        try:
            args = self._numbers.tensors(self._measured.extend(args))
        except BaseException:
            forward.fail()
            raise
        tensors = self._inputs.tensors(args)
        origins, volatile = forward.origins(self._inputs, tensors)
        alone = not forward.visited and forward.starts_at_root and not self._break_reason
        observer = current_observer()
        form = self._form(forward)
        return Request(
            self._graph_module,
            args,
            tensors,
            origins,
            volatile,
            alone,
            placed=self._placed(forward, form),
            num_samples=None if observer is None else observer.num_samples,
            form=form,
            shown=functools.partial(self._shown, forward),
            number=len(forward.visited),
            turn=forward.turn(self, origins),
        )

    def _form(self, forward: Forward) -> Form | None:
        """What to compile for, if the plan is live: the form of the plan that holds."""
        try:
            live = self._settings.live
        except PabError:  # it is raised where all ranks hear of it
            return None
        if live is None:
            return None
        running = forward.place.generation.choice if forward.place else None
        return (running or live.current()).form

    def _shown(self, forward: Forward) -> InputRoles | None:
        """The roles that an earlier graph of the forward has, or that its names show."""
        ran = (other for other in forward.visited if isinstance(other, CompiledProgram))
        first = next(ran, None)
        return first.roles if first else roles_of_call(forward.inputs, self._settings.options.axes)

    def _placed(self, forward: Forward, form: Form | None) -> InputRoles | None:
        """What is known of the inputs without the graph, where this is enough."""
        try:
            options = self._settings.for_form(form).options
        except PabError:
            return None
        if options.cut != OUTPUT:
            return None
        return self._shown(forward)

    def _program(self, request: Request) -> Runnable:
        """The program for a request; the first such request compiles it."""
        key = self._key(request)
        program = self._programs.find(key)
        if program is None:
            with compiling():
                program = self._programs.find(key)
                if program is None:
                    self._choose_split(request)
                    program = self._agreement.compiled(
                        functools.partial(self._logged, request),
                        self._fingerprint,
                        request.given(),
                        _keep_fingerprint,
                    )
                    self._programs.add(key, program, may_drop=self._agreement.is_alone)
        return program

    def _choose_split(self, request: Request) -> None:
        """With ``shard="auto"``, let the ranks agree on how they share a generation."""
        try:
            is_open = self._settings.options.auto is not None
        except PabError:  # it is raised where all ranks hear of it
            return
        if is_open:
            self._settings = with_chosen_split(request, self._settings)
            self._agreement = Agreement(self._graph_module, self._settings.options)

    def _key(self, request: Request) -> tuple[Any, ...]:
        inputs = request.origins, self._inputs.specialisation(request.args)
        return (*self._other_facts(request), *inputs)

    def _open_key(self, request: Request) -> tuple[Any, ...]:
        """What a program depends on besides the open sizes."""
        return (*self._other_facts(request), at_all_sizes(request.origins))

    def _other_facts(self, request: Request) -> tuple[Any, ...]:
        """What a program depends on besides its inputs."""
        return (
            request.alone,
            request.volatile,
            request.turn,
            request.stepping,
            request.num_samples,
            request.form,
            request.placed is not None,
            self._inputs.numbers(request.args, self._sizes.numbers),
        )

    def _restated(
        self,
        program: Runnable,
        request: Request,
        names: Collection[str],
        clock: str,
        form: Form | None,
    ) -> Runnable:
        """The program for a form of a request, if inputs of these names change at every step.

        If nothing could be reused then, it is the given one.
        """
        clock = clock if names else ""
        request = replace(request, stepping=frozenset(names), clock=clock, form=form)
        try:
            return self._program(request)
        except UnsupportedModelError:
            return self._programs.add(self._key(request), program, self._agreement.is_alone)

    def _logged(self, request: Request, team: Team | None) -> Runnable:
        """Compile the program on this rank, and prepare its line in the log."""
        with self._log.compiling(request, self._settings.compiler) as entry, collector_paused():
            entry.program = self._compile(request, team)
            return entry.program

    def _compile(self, request: Request, team: Team | None) -> Runnable:
        """Compile the program on this rank."""
        settings, options = self._settings, self._settings.options
        peers_of(  # raises if they are not there
            options.mesh, options.sequence_parallel, options.batch_mesh, options.batch_parallel
        )
        check_gradients(request.args)
        calls = model_calls()
        self._model_fit.of(settings.plan_now, calls[0].module if calls else None)
        settings.compiler.warm_up(request.args)
        watch_hotswap()
        refused: UnsupportedModelError | InvariantError | None
        try:
            check_no_pipeline(calls)
            check_other_caches(calls)
        except UnsupportedModelError as error:
            self._refuse(error, stacklevel=7)
            return plain_program(request, settings, str(error))
        try:
            program = self._for_sizes(replace(request, team=team))
            if self._numbers.positions and calls:
                number_clocks.forget(calls[0])
            return program
        except NoTimestepError as error:
            refused = number_clocks.check(calls[0], error) if calls else error.as_unsupported()
            if refused is None:
                return plain_program(request, settings, NUMBER_WAS_NEW)
        except (UnsupportedModelError, InvariantError) as error:
            refused = error
        except PabError:
            raise
        except Exception as error:
            refused = defect(error)
            refused.__cause__ = error
        refused = offered(refused, takes_request(request, settings))
        self._refuse(refused, stacklevel=7)
        return plain_program(request, settings, str(refused))

    def _for_sizes(self, request: Request) -> Runnable:
        """A program for the sizes of a request: of one for other sizes, if there is one."""
        key = self._open_key(request)
        others = self._open.get(key, ())
        earlier = earlier_sizes(request.origins)
        sizes = (*self._sizes.values(request.args), *earlier)
        for other in others:
            found = other.at_sizes(sizes, request.origins) if other.at_sizes else None
            if found is not None:
                return found
        are_open = bool(self._sizes.places or earlier) and not are_fixed(request.origins)
        may_open = are_open and len(others) < _MAX_OPEN
        program = compile_program(replace(request, has_open_sizes=may_open), self._settings)
        if program.at_sizes is not None:
            self._open.setdefault(key, []).append(program)
        return program

    def _fingerprint(self, program: Runnable, exchanges: bool) -> str:
        """Hash of what must be the same on all ranks.

        The graph enters as text, since a structure key holds addresses, which differ between
        processes. What ranks exchange enters too: an op may keep heads apart on one rank only. The
        graph of a model that is parallel by itself may hold the rank, so only its sites enter.
        """
        if exchanges:
            graph = format_graph(program.part.graph_module) if program.part else ""
            notes = (note.partition(";")[0] for note in program.finding.notes)
            graph += "".join(note for note in notes if "per step and rank" in note)
        else:
            graph = repr([(site.kind, site.can_broadcast) for site in program.sites])
        return fingerprint(self._settings.options, self._settings.plan, graph)

    def _run(self, program: Runnable, forward: Forward, request: Request) -> Any:
        """Run a program. An error drops the cache of the generation and reaches other ranks."""
        self._progress.start()
        try:
            restate = functools.partial(self._restated, program, request)
            outputs = program(forward, request.args, request.tensors, restate)
            if forward.place is not None:
                self._programs.ran(program, forward.place.generation)
            return outputs
        except BaseException as error:
            forward.fail()
            self._agreement.fail(error)
            raise
        finally:
            self._progress.stop()
            self._log.ran(self._settings.compiler)

    def _refuse(self, error: PabError, stacklevel: int) -> None:
        """Raise an error, or warn, as the option ``on_unsupported`` says."""
        if isinstance(error, UnsupportedModelError) and (calls := model_calls()):
            error = with_place(with_cause(error, calls[0].module), calls)
        if self._settings.options.on_unsupported == "raise":
            raise error
        warnings.warn(f"pab: compiled without reuse. {error}", stacklevel=stacklevel)

    @functools.cached_property
    def _settings(self) -> Settings:
        """The options, validated at the first call."""
        options = parse_options(*self._given)
        compiler = PieceCompiler(
            options.inner, options.mode, self._progress, options.warm == BACKGROUND
        )
        live = options.plan if isinstance(options.plan, LivePlan) else None
        return Settings(options, options.make_plan(), compiler, self._given[0], live)


def _keep_fingerprint(program: Runnable, fingerprint: str) -> None:
    """Keep what all ranks compiled alike, for a rank that compiles it once more."""
    if isinstance(program, CompiledProgram) and program.together is not None:
        program.together.fingerprint = fingerprint
