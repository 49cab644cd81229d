"""Pyramid Attention Broadcast in a pipeline, by hooks on the attention modules of a transformer.

The rule is the paper's::

    reuse  <=>  range > 1  and  step % range != 0  and  low <= fraction < high

A reuse takes the output of the last step at which the rule computed; where this lane has none from
that step, it computes. The pipeline says when a step ends, by its callback; which of the step's
calls it is shows in the prompt's value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dits.spec import Dit
from dits.truth import attention_modules


@dataclass(frozen=True)
class Rule:
    """Who reuses when.

    Attributes:
        ranges: kind -> compute every so many steps.
        window: fractions of the generation, half open.
        num_steps: steps of the generation.
        first_reusable: the first step whose outputs may be reused.
    """

    ranges: Mapping[str, int]
    window: tuple[float, float]
    num_steps: int
    first_reusable: int = 0


class Oracle:
    """A transformer whose attention modules compute or reuse by a rule; the model is changed.

    A transformer that starts in the middle of a generation counts from its own first step. A
    pipeline may go through the schedule several times.

    Attributes:
        computed: kind -> computations in the last generation.
        reused: kind -> reuses in the last generation.
        lanes: prompts, by value.
        timesteps: what reached the model, call by call.
    """

    def __init__(self, model: torch.nn.Module, dit: Dit, rule: Rule) -> None:
        self.computed: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()
        self.lanes: list[bytes] = []
        self.timesteps: list[torch.Tensor] = []
        self._rule, self._clock = rule, dit.clock
        self._outputs: dict[tuple[str, bytes, int], tuple[int, Any]] = {}
        self._sources: dict[str, int] = {}
        self._calls: Counter[str] = Counter()
        self._skipped: int | None = None
        self._global_step = self._step = 0
        self._fraction = 0.0
        self._kinds = {kind for _, kind in dit.kinds}
        for path, module in attention_modules(model, dit).items():
            self._wrap(path, module, dit.kind_of(path) or "")
        model.register_forward_pre_hook(self._enter, with_kwargs=True)

    def end_step(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
        """What the pipeline calls at the end of every step."""
        self._global_step = (step + 1) % pipe.num_timesteps
        return tensors

    def _enter(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        self.timesteps.append(kwargs[self._clock])
        if self._skipped is None:
            self._skipped = self._global_step
        step = self._global_step - self._skipped
        if step < self._step:
            self.computed.clear()
            self.reused.clear()
        if step != self._step:
            for kind in self._kinds:
                if not self._reuses(kind):
                    self._sources[kind] = self._step
        self._step = step
        self._fraction = step / (self._rule.num_steps - self._skipped)
        self._lane = kwargs["encoder_hidden_states"].float().numpy().tobytes()
        if self._lane not in self.lanes:
            self.lanes.append(self._lane)
        self._calls.clear()

    def _reuses(self, kind: str) -> bool:
        low, high = self._rule.window
        return low <= self._fraction < high and self._step % self._rule.ranges.get(kind, 1) != 0

    def _wrap(self, path: str, module: torch.nn.Module, kind: str) -> None:
        real = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = (path, self._lane, self._calls[path])
            self._calls[path] += 1
            step, output = self._outputs.get(key, (-1, None))
            wanted = self._reuses(kind)
            if wanted and step == self._sources.get(kind) and step >= self._rule.first_reusable:
                self.reused[kind] += 1
                return output
            self.computed[kind] += 1
            output = real(*args, **kwargs)
            if not wanted:
                self._outputs[key] = (self._step, output)
            return output

        module.forward = forward  # type: ignore[method-assign]
