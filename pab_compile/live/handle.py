"""Handles: what ``enable`` returns. They exchange the plan, and undo the compilation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from pab_compile.compile.model_fit import check_model
from pab_compile.errors import PabError
from pab_compile.inspect.explain import explain
from pab_compile.plans.live import NOTHING, Choice, LivePlan
from pab_compile.plans.plan import Plan
from pab_compile.report.explanation import Explanation
from pab_compile.report.per_module import PerModule
from pab_compile.runtime.last_runs import stats
from pab_compile.runtime.stats import RunStats

from .bring_weights import bring_weights
from .buckets import COMPILED_CALL, Bucket, Padding
from .choose import choice_of
from .other_methods import run_compiled


class Handle:
    """A model or pipeline that runs with Pyramid Attention Broadcast.

    A plan is the name of a level or a preset, ``"off"``, the path of a plan file, a
    ``Calibration``, a function, or a mapping of options such as ``{"ranges": {"spatial": 2}}``. A
    generation that runs takes over another plan at its next step. Nothing is compiled again, except
    once when the first plan is used that does not treat all sites alike.

    Args:
        modules: role -> module that is compiled in place.
        live: their plan.
        given: the options of the handle. They replace those of a level or a preset.
        options: what ``torch.compile`` gets.
        dynamic: likewise.
        buckets: how prompts are padded, by the names of the inputs.

    Raises:
        OptionError: a module has no such input, or no mask for it.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        live: LivePlan,
        given: Mapping[str, Any],
        options: Mapping[str, Any],
        dynamic: bool | None,
        buckets: Mapping[str, Bucket],
    ) -> None:
        self._modules = dict(modules)
        self._live = live
        self._given = dict(given)
        self._was_set = {role: COMPILED_CALL in vars(module) for role, module in modules.items()}
        self._is_enabled = True
        self._undo = ExitStack()
        paddings = [Padding(module, buckets) for module in self._modules.values() if buckets]
        self._check_models(live.current().plan)
        for module in self._modules.values():
            bring_weights(module, self._undo)
        for module in self._modules.values():
            module.compile(backend="pab", options=dict(options), dynamic=dynamic)
            run_compiled(module, self._undo)
        for padding in paddings:
            padding.attach()

    @property
    def modules(self) -> tuple[str, ...]:
        """The roles of the compiled modules, such as ``transformer``."""
        return tuple(self._modules)

    @property
    def plan(self) -> str:
        """The name of the plan that holds for the running code."""
        return self._live.current().name

    def compiled(self) -> list[torch.nn.Module]:
        """The compiled modules.

        Raises:
            PabError: the handle was disabled.
        """
        self._check_enabled()
        return list(self._modules.values())

    def set(self, plan: Any) -> None:
        """Exchange the plan, for all threads and for generations that run now.

        Code inside ``use`` keeps its own plan.

        Raises:
            OptionError: it is not a plan, or it does not go with the options of the handle.
            PlanError: a plan file is malformed, or the plan was tuned on another architecture.
        """
        self._check_enabled()
        self._live.set(self._choice(plan))

    def off(self, exact: bool = False) -> None:
        """Reuse nothing.

        Args:
            exact: run what stock ``torch.compile`` runs, bit for bit. The first time this compiles
                the whole graph. Otherwise the pieces of the last plan run, which compiles nothing.
                Inductor rounds at other places in them.
        """
        self._check_enabled()
        self._live.set(self._live.off(exact))

    @contextmanager
    def use(self, plan: Any) -> Iterator[None]:
        """Exchange the plan inside a block, for the thread or task that runs it only.

        Raises:
            OptionError: as for ``set``.
            PlanError: as for ``set``.
        """
        self._check_enabled()
        with self._live.use(self._choice(plan)):
            yield

    @contextmanager
    def disabled(self, exact: bool = False) -> Iterator[None]:
        """Reuse nothing inside a block, for the thread or task that runs it only.

        Args:
            exact: as for ``off``.
        """
        self._check_enabled()
        with self._live.use(self._live.off(exact)):
            yield

    def stats(self) -> PerModule[RunStats]:
        """Statistics of the last generation of every module that ran, by its role.

        Raises:
            PabError: none of them ran.
        """
        return self._of_each(stats)

    def explain(self, *args: Any, **kwargs: Any) -> PerModule[Explanation]:
        """What was found in every module, and what the plan does with it, by its role.

        Args:
            *args: inputs of the modules; none if they ran.
            **kwargs: likewise.

        Raises:
            PabError: no inputs were given, and none of the modules ran.
        """
        if args or kwargs:
            self._check_enabled()
            parts = self._modules.items()
            return PerModule({role: explain(part, *args, **kwargs) for role, part in parts})
        return self._of_each(explain)

    def disable(self) -> None:
        """Undo ``enable``: the modules run as before it. A second call does nothing."""
        if not self._is_enabled:
            return
        self._is_enabled = False
        self._undo.close()
        for role, module in self._modules.items():
            if self._was_set[role]:
                setattr(module, COMPILED_CALL, None)
            else:
                delattr(module, COMPILED_CALL)

    def __repr__(self) -> str:
        """What is compiled, and the plan."""
        state = f"plan {self.plan!r}" if self._is_enabled else "disabled"
        return f"<pab_compile.Handle of {', '.join(self._modules)}: {state}>"

    def _choice(self, plan: Any) -> Choice:
        """The plan with its form. What reuses nothing runs in the form that is there."""
        choice = choice_of(plan, self._given)
        self._check_models(choice.plan)
        return self._live.off() if choice.plan == NOTHING else choice

    def _check_models(self, plan: Plan) -> None:
        """Check that a plan was tuned on models of these architectures."""
        for role, module in self._modules.items():
            check_model(plan, module, role if len(self._modules) > 1 else "")

    def _of_each(self, report: Any) -> PerModule[Any]:
        """What a report says of every module that ran."""
        self._check_enabled()
        found: PerModule[Any] = PerModule()
        missing: list[PabError] = []
        for role, module in self._modules.items():
            try:
                found[role] = report(module)
            except PabError as error:
                missing.append(error)
        if not found:
            raise missing[0]
        return found

    def _check_enabled(self) -> None:
        if not self._is_enabled:
            raise PabError("This handle was disabled. Call enable again.")
