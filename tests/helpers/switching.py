"""An oracle for plans that change within a generation, in plain eager code.

It extends ``helpers.oracle``. A step that the rule of that step reuses needs the outputs that this
rule alone would name, all of them, as the newest ones that are cached. Otherwise it computes. Only
a step that its rule computes is cached, for as long as that rule would read it later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import pab_compile.backend
from helpers.latte import Loop, Moment, calls_of
from helpers.oracle import Event, Oracle, Rule, extrapolate
from pab_compile.plans.presets import PRESETS


@dataclass(frozen=True)
class Switched:
    """A rule and the cut that goes with it."""

    rule: Rule
    cut: str

    @staticmethod
    def preset(name: str) -> Switched:
        """The rule of a preset. ``off`` reuses nothing."""
        if name == "off":
            return Switched(Rule({}, (0.0, 1.0)), "branch")
        preset = PRESETS[name]
        return Switched(Rule(preset.ranges, preset.window, preset.predict), preset.cut)


class SwitchingOracle(Oracle):
    """A Latte whose plan depends on the step.

    Args:
        model: the model.
        plans: first step -> name of the preset that holds from there on.
        timesteps: of the generation.
    """

    def __init__(self, model: Any, plans: Mapping[int, str], timesteps: torch.Tensor) -> None:
        super().__init__(model)
        self._plans = dict(sorted(plans.items()))
        self._moments = [
            Moment(step, len(timesteps), float(t), "") for step, t in enumerate(timesteps)
        ]
        self._form = ""

    def begin(self, moment: Moment) -> None:
        """A call of the model begins."""
        self._now = moment
        first = max(step for step in self._plans if step <= moment.step)
        name = self._plans[first]
        switched = Switched.preset(name)
        self._rule, self._gate_inside = switched.rule, switched.cut != "attention"
        if name != "off" and self._form not in ("", switched.cut):
            self._outputs.clear()  # graphs of the other form do not run any more
        self._form = self._form if name == "off" and self._form else switched.cut
        self._gate_inside = self._form != "attention"

    def _computes(self, kind: str, step: int) -> bool:
        return step == 0 or not self._rule.reuses(kind, step, self._moments[step])

    def _reads(self, kind: str, step: int) -> tuple[int, ...]:
        """Steps whose outputs the rule reads at a step, the oldest first."""
        if self._computes(kind, step):
            return ()
        computed = [s for s in range(step) if self._computes(kind, s)]
        return tuple(computed[-self._rule.order(kind) - 1 :])

    def branch(self, name: str, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of a branch, computed or reused."""
        now = self._now
        outputs = self._outputs[now.lane, name]
        wanted = self._reads(kind, now.step)
        reused = bool(wanted) and tuple(s for s, _ in outputs[-len(wanted) :]) == wanted
        if reused:
            used: list[tuple[float, torch.Tensor]] = [(s, t) for s, t in outputs[-len(wanted) :]]
            result = extrapolate(used, now.step)
        else:
            result = compute()
            if not wanted:
                outputs.append((now.step, result))
        if reused or not wanted:
            later = (self._reads(kind, s) for s in range(now.step + 1, len(self._moments)))
            needed = {s for read in later for s in read if s <= now.step}
            del outputs[: len(outputs) - len(needed)]
        size = result.numel() * result.element_size()
        self.events.append(Event(name, kind, now.step, now.lane, wanted * reused, size))
        return result


class Compilations:
    """Counts the graphs that are compiled, for whatever form."""

    def __init__(self, monkeypatch: Any) -> None:
        self.count = 0
        real = pab_compile.backend.compile_program

        def counted(*args: Any) -> Any:
            self.count += 1
            return real(*args)

        monkeypatch.setattr(pab_compile.backend, "compile_program", counted)


def switched(
    handle: pab_compile.Handle,
    model: torch.nn.Module,
    timesteps: torch.Tensor,
    plans: dict[int, str],
) -> torch.Tensor:
    """A generation whose plan is exchanged after the step before each given one."""
    handle.set(plans[0])
    running = Loop(calls_of(model), timesteps)
    for step in running.steps():
        if step + 1 in plans:
            handle.set(plans[step + 1])
    return torch.stack(running.predictions)
