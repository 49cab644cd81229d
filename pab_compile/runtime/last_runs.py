"""Last runs: where the last generation of every compiled model is found."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from pab_compile.denoisers import (
    denoisers_of,
    how_to_compile,
    is_pipeline,
    methods_around_forward,
    parts_of,
    what_it_is,
)
from pab_compile.dynamo import Compilation, compilation_of, model_calls, used_up, why_uncompiled
from pab_compile.errors import PabError
from pab_compile.options import Options
from pab_compile.plans.live import Choice, LivePlan
from pab_compile.report.explanation import Explanation, Finding
from pab_compile.report.run_stats import RunStats

from .forward import Forward
from .generation import Generation
from .whose import Named, Whose


@dataclass(frozen=True, eq=False)
class LastRun:
    """The last generation of one compilation of one model.

    Attributes:
        anchor: a weight of the model, or what was called. It is alive as long as the model is.
        whose: identifies the model.
        options: the options of the compilation.
        context: Dynamo's object for the compilation; None if it is unknown.
        running: the generation.
        findings: what was found in the graphs of its first call, which may still be running.
        breaks: why Dynamo broke the forward after each graph.
    """

    anchor: weakref.ref[Any]
    whose: Whose
    options: object
    context: weakref.ref[Any] | None
    running: Generation
    findings: Sequence[Finding]
    breaks: Sequence[str]

    def explanation(self) -> Explanation:
        """What was found in all graphs."""
        return Explanation.of(self.findings, self.breaks, self.running.lanes.num_opened)

    def is_replaced_by(self, other: LastRun) -> bool:
        """Whether another generation is a later one of the same compilation and model."""
        if self.running is not other.running and self.whose.weights != other.whose.weights:
            return False
        if self.options != other.options:
            return self.running is other.running
        return self.context == other.context or self.context is None or self.context() is None

    def is_of(self, compilation: Compilation) -> bool:
        """Whether it ran in a compilation, whichever one its code was made for."""
        if self.context is None:
            return self.options == compilation.options
        return self.context() is compilation.context


class LastRuns:
    """The last generation of every compiled model, as long as the model is alive.

    A compiled model is identified by what was called, its weights, and its compilation. So several
    compilations of one model have their own entries, also with equal options, and so have models
    that share some weights.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LastRun] = []

    def publish(
        self,
        identity: Sequence[object],
        options: object,
        run: Generation,
        forward: Forward,
    ) -> None:
        """Record the running generation of the model with this identity.

        Args:
            identity: the weights that its graph reads, or what was called.
            options: the options of the compilation.
            run: the generation.
            forward: the forward that is running.
        """
        with self._lock:
            calls = model_calls()
            running_in = calls[0].compilation if calls else None
            context = None if running_in is None else weakref.ref(running_in)
            last = self._entries[-1] if self._entries else None
            if last is not None and last.running is run and last.context == context:
                return
            # The forward itself would keep tensors and compiled code alive.
            found = (forward.findings, forward.breaks)
            anchor, whose = weakref.ref(identity[0]), Whose.running(identity)
            last = LastRun(anchor, whose, options, context, run, *found)
            kept = [e for e in self._entries if e.anchor() is not None]
            self._entries = [*(e for e in kept if not e.is_replaced_by(last)), last]

    def find(self, model: Any, compilation: Compilation | None) -> LastRun | None:
        """The last generation of a compiled model.

        Args:
            model: the model, a compiled function, or a pipeline.
            compilation: how it was compiled; None for any.
        """
        named = Named.of(model)
        with self._lock:
            entries = [e for e in reversed(self._entries) if e.anchor() is not None]
            mine = [entry for entry in entries if entry.whose.is_of(named)]
            if compilation is not None:
                mine = [entry for entry in mine if entry.is_of(compilation)]
            return mine[0] if mine else None


last_runs = LastRuns()


def last_generation(compiled: Any, missing: str) -> LastRun:
    """The last generation of a compiled model.

    Args:
        compiled: the model, a compiled function, or a pipeline.
        missing: how the error begins if there is no generation.
    """
    compilation = compilation_of(compiled)
    found = last_runs.find(compiled, compilation)
    if found is None and (why := _no_model(compiled)):
        raise PabError(f"{missing}: {why}")
    if found is None:
        name = getattr(compiled, "__qualname__", type(compiled).__name__)
        raise PabError(
            f"{missing}: this {name} has not completed a step compiled with "
            f'backend="pab". {_why_none(compiled, compilation)}{_other_methods(compiled)}'
        )
    return found


def _other_methods(compiled: Any) -> str:
    """Which methods of a model pass by what compiles its call; ``""`` if there are none."""
    module = getattr(compiled, "_orig_mod", compiled)
    names = methods_around_forward(module) if isinstance(module, torch.nn.Module) else []
    if not names:
        return ""
    return (
        f" Its {' and '.join(names)} call forward, which is then not compiled: use enable(model), "
        'or model.forward = torch.compile(model.forward, backend="pab").'
    )


def _no_model(target: Any) -> str:
    """Why something has no generation because of what it is; ``""`` for a model."""
    if is_pipeline(target):
        return _no_run_of(target)
    if isinstance(target, torch.nn.Module) and (what := what_it_is(target)):
        return f"this {type(target).__name__} {what}. {how_to_compile(None)}"
    if hasattr(target, "stats") and hasattr(target, "explain"):
        return f"{target!r} has statistics of its own for each module: call its stats()."
    if isinstance(target, type) or (not callable(target) and not parts_of(target)):
        what = "None" if target is None else f"{target!r}"
        return (
            f"{what} is no model. Give what was compiled, such as pipe.transformer, or the "
            "pipeline that holds it."
        )
    return ""


def _no_run_of(pipeline: Any) -> str:
    """Why no part of a pipeline has a generation, and what to do."""
    if why := why_uncompiled():
        return f"compilation is switched off: {why}. Then torch runs the model as it is."
    name, parts = type(pipeline).__name__, denoisers_of(pipeline)
    compiled = [f"pipe.{role}" for role, part in parts.items() if compilation_of(part) is not None]
    if compiled:
        return f"{' and '.join(compiled)} of this {name} is compiled, but has not run. Run it once."
    return f"no part of this {name} is compiled. {how_to_compile(pipeline)}"


def _why_none(compiled: Any, compilation: Compilation | None) -> str:
    """Why a model has no generation, and what to do."""
    if why := why_uncompiled():
        return f"Compilation is switched off: {why}. Then torch runs the model as it is."
    if compilation is None:
        return (
            "It is not compiled itself. torch.compile(model) returns the compiled model and leaves "
            "the model as it is: call what it returns (pipe.transformer = torch.compile(...)), or "
            "use module.compile(...)."
        )
    ran = last_runs.find(compiled, None) is not None
    other = "Another compilation of it ran: pass the result of that torch.compile. " if ran else ""
    return (
        f"{other}Call it at least once. If you called the module that was given to torch.compile, "
        "the result of torch.compile was not used. If torch warned of recompile_limit, the model "
        "ran without being compiled. Dynamo limits the number of compilations (plans and sizes) of "
        "one model's code: raise torch.compiler.config.recompile_limit."
    )


def stats(compiled: Any) -> RunStats:
    """Statistics of the last generation of a compiled model, in whatever thread it ran.

    Args:
        compiled: the result of ``torch.compile(module, backend="pab")``, or a module on which
            ``module.compile(backend="pab")`` was called. A compiled function or method, a module
            that it calls, and a pipeline that holds one of these are understood too.

    Raises:
        PabError: the model has not run, or was not compiled with this backend.
    """
    found = last_generation(compiled, "No statistics")
    others = _others(compiled, found) if is_pipeline(compiled) else []
    counted = found.running.stats()
    has_sites = any(finding.sites for finding in found.findings)
    return replace(
        counted,
        notes=(*counted.notes, *others, *filter(None, [used_up(compiled)])),
        explanation=found.explanation() if has_sites else None,
        options=_texts(found.options, found.running.choice),
    )


def _texts(options: Any, choice: Choice | None) -> dict[str, str]:
    """The options of a compilation as texts, with the plan that held instead of a live one."""
    given = vars(options) if isinstance(options, Options) else options
    if not isinstance(given, Mapping):
        return {}
    fixed = {str(k): repr(v) for k, v in given.items() if not isinstance(v, LivePlan)}
    return fixed if choice is None else choice.described() | fixed


def _others(pipeline: Any, found: LastRun) -> list[str]:
    """What is said of the other modules of a pipeline that ran: they have their own statistics."""
    runs = {role: last_runs.find(part, None) for role, part in denoisers_of(pipeline).items()}
    ran = {role: run for role, run in runs.items() if run is not None}
    mine = [role for role, run in ran.items() if run.running is found.running]
    others = [f"pab_compile.stats(pipe.{role})" for role in ran if role not in mine]
    if not others:
        return []
    return [f"these are of {' and '.join(mine) or 'one'}; see also {', '.join(others)}"]
