"""``explain``: what the compiler finds in a model, without compiling anything."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx

from pab_compile.compile.analysis import (
    Costs,
    Known,
    analyse,
    finding,
    holds_attention,
    nothing_found,
    reason_of,
    untraced_finding,
    with_flops,
)
from pab_compile.compile.call_roles import roles_of_call
from pab_compile.compile.collecting import collector_paused
from pab_compile.compile.floor import offered, takes_graph, takes_part
from pab_compile.compile.model_fit import check_model
from pab_compile.compile.number_clocks import number_error
from pab_compile.compile.untraced import may_be_whole, untraced
from pab_compile.denoisers import denoisers_of, is_pipeline, what_it_is
from pab_compile.dynamo import compilation_of, compiling, trace_once
from pab_compile.errors import InvariantError, PabError, RanksError, UnsupportedModelError
from pab_compile.forecast.auto import lines_of, table_of
from pab_compile.options import GivenOptions, Options, parse_options
from pab_compile.passes.errors import NoTimestepError
from pab_compile.passes.graph.capture import break_reason, capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.join import Part
from pab_compile.passes.graph.measured import measure
from pab_compile.passes.graph.number_inputs import timely_numbers
from pab_compile.passes.parallel.choose import choose
from pab_compile.passes.parallel.split_batch import first_part
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.broadcast import branches
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.passes.sites.site import OUTPUT, Site
from pab_compile.plans.budget import (
    DEFAULT_BUDGET,
    Claim,
    budget_line,
    chosen,
    chosen_or_narrowed,
    claims_of,
    free_bytes,
    in_bytes,
)
from pab_compile.plans.plan import Plan
from pab_compile.plans.share import computed_share
from pab_compile.ranks.mesh import ranks_for
from pab_compile.report.dump import Dumper
from pab_compile.report.explanation import Explanation, Finding
from pab_compile.runtime.forward import Forward, Forwards
from pab_compile.runtime.last_runs import last_generation, last_runs
from pab_compile.runtime.layer_hooks import whole_weights, with_cause
from pab_compile.runtime.misplaced import not_a_denoiser

_MUCH = 2**30  # bytes that matter on a device of which nothing is known
_FEW = 10  # caches below this part of what is free do not matter


def explain(
    model: torch.nn.Module | Callable[..., Any],
    /,
    *args: Any,
    options: GivenOptions = None,
    **kwargs: Any,
) -> Explanation:
    """Trace a model and report every site, without running the inner compiler.

    Without inputs, it reports what was found in a compiled model at its last run.

    Inputs may be real, ``meta`` or fake tensors, so a model may be too large for the machine. A
    forward of several graphs gives one report. Then the model also runs, graph by graph.

    Args:
        model: a module or function, compiled or not, or a pipeline with one module that denoises.
        *args: inputs of the model; none for a compiled model that has run.
        options: options of the backend; see ``pab_compile.Options``. None: those of the compiled
            model, or the defaults.
        **kwargs: inputs of the model.

    Returns:
        The sites with kind, evidence, range, bytes and FLOPs.

    Raises:
        OptionError: an option is wrong.
        PabError: no inputs were given, and the model has not run.
        PlanError: a plan does not fit the model.
        UnsupportedModelError: no graph of the model has latents, a clock and attention.
    """
    if args or kwargs:
        model = _one_model(model)
    can_have_run = isinstance(model, torch.nn.Module) or not callable(model) or is_pipeline(model)
    can_have_run |= compilation_of(model) is not None or last_runs.find(model, None) is not None
    if options is None and not args and not kwargs and can_have_run:
        return last_generation(model, "Nothing to explain without inputs").explanation()
    if options is None and (compilation := compilation_of(model)) is not None:
        options = compilation.options
    parsed = parse_options(options)
    plan = parsed.make_plan()
    survey = Survey(parsed, plan)
    module = getattr(model, "_orig_mod", model)
    forward = module.forward if isinstance(module, torch.nn.Module) else module
    owner = module if isinstance(module, torch.nn.Module) else None
    note = check_model(plan, owner)
    arguments = by_name(forward, args, kwargs)
    if owner is not None and "forward" in vars(owner):  # a hook is around it
        forward = owner._call_impl
    try:
        with torch.no_grad(), collector_paused(), whole_weights(owner):
            trace_once(forward, *arguments, survey.run)
        found = survey.explanation()
        return replace(found, notes=(*found.notes, note)) if note else found
    except NoTimestepError as error:
        if numbers := timely_numbers(arguments[1]):
            raise number_error(numbers) from error
        if owner is not None and what_it_is(owner):
            raise not_a_denoiser(error.as_unsupported(), owner) from None
        raise with_cause(error.as_unsupported(), owner) from None
    except UnsupportedModelError as error:
        if owner is not None and what_it_is(owner):
            raise not_a_denoiser(error, owner) from None
        if (named := with_cause(error, owner)) is error:
            raise
        raise named from error


def _one_model(target: Any) -> Any:
    """What to trace: the module of a pipeline that denoises, or the model itself."""
    if is_pipeline(target):
        modules = {id(part): role for role, part in denoisers_of(target).items()}
        if len(modules) > 1:
            named = ", ".join(f"pipe.{role}" for role in modules.values())
            raise PabError(
                f"explain got inputs and a {type(target).__name__}, which has several modules that "
                f"denoise: give one of {named}."
            )
        return denoisers_of(target)[next(iter(modules.values()))]
    if not callable(target):
        raise PabError(
            f"explain got {target!r}, which is no model. Give a module, or a function of its "
            "inputs, such as pipe.transformer."
        )
    return target


@dataclass(frozen=True, eq=False)
class _Seen:
    """A graph of the forward."""

    part: Part | None
    finding: Finding
    sites: tuple[Site, ...] = ()


class Survey:
    """Runs the graphs of a forward unchanged, and analyses each of them.

    Args:
        options: how to compile.
        plan: the plan that the options describe.

    Attributes:
        programs: what was found in the graphs that can be analysed.
    """

    def __init__(self, options: Options, plan: Plan) -> None:
        self.programs: list[Program] = []
        self._options = options
        self._plan = plan
        self._dumper = Dumper(options.dump)
        self._forwards = Forwards()
        self._findings: list[Finding] = []
        self._claims: list[Claim] = []
        self._device = torch.device("cpu")
        self._breaks: list[str] = []

    def run(self, graph_module: fx.GraphModule, args: Sequence[Any]) -> Any:
        """Analyse one graph, then run it."""
        forward = self._forwards.current()
        measured = measure(graph_module)
        self._breaks.append(break_reason(graph_module))
        graph_module, args = measured.rest, measured.extend(tuple(args))
        inputs = Inputs.of(graph_module, args)
        tensors = inputs.tensors(args)
        self._device = next((tensor.device for tensor in tensors), self._device)
        origins = forward.origins(inputs, tensors)
        alone = not forward.visited and forward.starts_at_root and not self._breaks[-1]
        part = refused = None
        try:
            with compiling():
                part = Part(capture(graph_module, args), *origins)
                known = self._known(forward)
                expected = partial(self._shown, forward)
                settings = (self._options, self._plan, self._dumper)
                program = analyse(part, *settings, alone, known, expected)
                self.programs.append(program)
                found = finding(part, program, self._plan, "", alone, self._options.keeping.dtype)
                found = self._with_choices(found, program, alone)
        except (UnsupportedModelError, InvariantError) as error:
            may_be = part is None and may_be_whole(error)
            whole = self._untraced(forward, graph_module, args) if may_be else None
            refused = error if whole is None else None
            found = whole or finding(part, None, self._plan, reason_of(error, part))
        if not found.sites:
            with_known = (self._shown(forward), self._options)
            if part is not None:
                is_taken = takes_part(part, *with_known, alone)
            else:
                is_taken = refused is not None and takes_graph(
                    graph_module, args, refused, *with_known
                )
            found = replace(found, takes_whole=is_taken)
        if refused is not None and (alone or isinstance(refused, InvariantError)):
            raise offered(refused, found.takes_whole)
        self._findings.append(found)
        outputs = graph_module.forward(*args)
        forward.finish(_Seen(part, found), tensors, outputs)
        return outputs

    def _untraced(
        self, forward: Forward, graph_module: fx.GraphModule, args: Sequence[Any]
    ) -> Finding | None:
        """What is found in a graph that is one branch as it is, if it can be one."""
        known = self._known(forward)
        whole = untraced(graph_module, args) if known else None
        if known is None or whole is None:
            return None
        sites = [branch.site for _, branch in branches(whole)]
        return untraced_finding(sites, known, self._plan, self._options.keeping.dtype)

    def _known(self, forward: Forward) -> Known | None:
        """Latents and clock, where the graph need not show them."""
        return self._shown(forward) if self._options.cut == OUTPUT else None

    def _shown(self, forward: Forward) -> Known | None:
        """Latents and clock of an earlier graph, or those that the call shows by its names."""
        earlier = (found for found in self._findings if found.latents)
        if (found := next(earlier, None)) is not None:
            return Known(found.latents, found.clock)
        roles = roles_of_call(forward.inputs, self._options.axes)
        return Known(roles.latents, roles.clock, roles.stepping) if roles else None

    def _with_choices(self, found: Finding, program: Program, alone: bool) -> Finding:
        """The finding, with what the rewrite would choose: shards and merged sites."""
        part = program
        sites = program.sites
        is_shared = alone or holds_attention(program)  # of several graphs, only one is sharded
        if is_shared and self._options.auto is not None:
            found = replace(found, notes=(*found.notes, *self._ways(program, alone)))
        if is_shared and self._options.num_batch_ranks > 1:
            part = first_part(program, self._options.num_batch_ranks)
            found = replace(found, notes=(*found.notes, *part.sharding))
        if is_shared and self._options.num_ranks > 1:
            share = partial(computed_share, self._plan)
            wanted = (self._options.axis, self._options.ring_parallel)
            choice = choose(part, self._options.num_ranks, share, *wanted)
            found = replace(found, notes=(*found.notes, *choice.lines()))
        if self._options.coalesce:
            merged = coalesce(program.graph_module, program.sites, self._plan.pattern)
            found = replace(
                found,
                notes=(*found.notes, *merged.lines),
            ).with_sums(merged.sites, self._plan, self._options.keeping.dtype)
            cut = replace(program, graph_module=merged.graph_module, sites=merged.sites)
            found = with_flops(found, Costs.of(cut, self._plan, alone), cut.sites, self._plan)
            sites = merged.sites
        if self._options.keeping.budget is not None:
            self._claims += claims_of(sites, self._plan, self._options.keeping.dtype)
        return found

    def _ways(self, program: Program, alone: bool) -> Sequence[str]:
        """The ways to share a generation between which ranks would choose."""
        try:
            num_ranks = len(ranks_for(self._options.mesh))
        except RanksError as error:
            return [f"shard='auto' chose nothing here: {error}"]
        if num_ranks == 1:
            return ["shard='auto': there is one process, so nothing is shared"]
        device = self._device.type
        return lines_of(table_of(program, self._options, self._plan, num_ranks, device, alone))

    def explanation(self) -> Explanation:
        """What was found in all graphs."""
        if not self._findings:
            raise UnsupportedModelError("The model runs no tensor op.")
        if not any(found.sites for found in self._findings):
            raise nothing_found(self._findings, self._breaks)
        found = Explanation.of(self._findings, self._breaks)
        return replace(found, notes=(*found.notes, *self._about_budget()))

    def _about_budget(self) -> list[str]:
        """Which sites the budget leaves out, for one and for two calls per step."""
        keeping, claims = self._options.keeping, self._claims
        if keeping.budget is None:
            return []
        lines: list[str] = []
        if not keeping.is_given:
            free, needed = free_bytes(self._device), sum(claim.num_bytes for claim in claims)
            if needed < (_MUCH if free is None else free / _FEW):
                return []  # it matters on no device that holds the model
            lines.append(
                f"no cache_budget was given, so it is {DEFAULT_BUDGET:.0%} of what is free on the "
                "device at the first step"
            )
            if free is None:
                return lines
        limit, is_short = in_bytes(keeping.budget, self._device), False
        for num_lanes in (1, 2):
            kept, is_narrow = chosen_or_narrowed(claims, limit, num_lanes, keeping.narrows)
            left = [claim.name for n, claim in enumerate(claims) if n not in kept]
            is_short |= bool(left) and not is_narrow
            line = (limit, num_lanes, len(claims), left, keeping.offload, is_narrow)
            lines.append(budget_line(*line))
        if is_short:
            narrow = [claim.narrowed() for claim in claims]
            held = [len(chosen(narrow, limit, num_lanes)) for num_lanes in (1, 2)]
            lines.append(
                f"cache_dtype 'auto' or 'float8_e4m3' would hold {held[0]} of {len(claims)} sites "
                f"for 1 call per step, and {held[1]} for 2"
            )
        return lines


def by_name(
    forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], dict[str, Any]]:
    """Arguments by keyword if the signature allows it, so that the graph's inputs have names."""
    parameters = inspect.signature(forward).parameters.values()
    named = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(named):
        return args, dict(kwargs)
    return (), {**dict(zip(named, args, strict=False)), **kwargs}
