"""Pyramid Attention Broadcast by module hooks, for any DiT whose attention modules are known.

The rule is the paper's::

    reuse  <=>  range > 1  and  step % range != 0  and  low <= step / steps < high

What is reused is the output of the attention module, as in diffusers' own hooks; where a module
computes an MLP as well, the output of the attention call inside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from helpers.latte import assert_different, assert_same

from .build import Denoising, run
from .spec import Dit
from .truth import attention_modules

RANGES = {"full": 2, "joint": 2, "spatial": 2, "temporal": 3, "cross": 3}
WINDOW = (0.0, 1.0)


class Oracle:
    """A model whose attention modules are computed or reused by the rule.

    The model is changed until ``remove`` is called.

    Args:
        model: an eager model.
        dit: says which modules are attentions of which kind.
        ranges: kind -> compute every so many steps.
        window: fractions of the steps, half open.

    Attributes:
        computed: kind -> computations of sites so far.
        reused: kind -> reuses of sites so far.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        dit: Dit,
        ranges: Mapping[str, int] = RANGES,
        window: tuple[float, float] = WINDOW,
    ) -> None:
        self.computed: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()
        self._model, self._ranges, self._window = model, ranges, window
        self._streams = dit.streams
        self._fraction, self._step = 0.0, 0
        self._calls: Counter[str] = Counter()
        self._outputs: dict[tuple[str, int], Any] = {}
        self._wrapped: list[torch.nn.Module] = []
        for path, module in attention_modules(model, dit).items():
            if dit.unseen and re.search(dit.unseen, path):
                continue
            wrap = self._wrap_call if dit.fused and re.search(dit.fused, path) else self._wrap
            wrap(path, module, dit.kind_of(path) or "")

    def __call__(self, step: int, num_steps: int, **inputs: Any) -> tuple[torch.Tensor, ...]:
        """The model's outputs at a step. Steps must come in order, from 0."""
        self._step, self._fraction = step, step / num_steps
        self._calls.clear()
        return run(self._model, **inputs)

    def run(self, loop: Denoising) -> list[tuple[torch.Tensor, ...]]:
        """What the model returns at every step of a loop."""
        steps = range(loop.num_steps)
        return [self(step, loop.num_steps, **loop.at(step)) for step in steps]

    def remove(self) -> None:
        """Let the model be as it was."""
        for module in self._wrapped:
            del module.forward

    def _reuses(self, kind: str) -> bool:
        low, high = self._window
        return low <= self._fraction < high and self._step % self._ranges.get(kind, 1) != 0

    def _output(self, path: str, kind: str, compute: Callable[[], Any]) -> Any:
        key = (path, self._calls[path])
        self._calls[path] += 1
        if self._reuses(kind):
            self.reused[kind] += self._streams
        else:
            self.computed[kind] += self._streams
            self._outputs[key] = compute()
        return self._outputs[key]

    def _wrap(self, path: str, module: torch.nn.Module, kind: str) -> None:
        real = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._output(path, kind, lambda: real(*args, **kwargs))

        self._replace(module, forward)

    def _wrap_call(self, path: str, module: torch.nn.Module, kind: str) -> None:
        real = module.forward
        attend = F.scaled_dot_product_attention

        def reused(*args: Any, **kwargs: Any) -> Any:
            return self._output(path, kind, lambda: attend(*args, **kwargs))

        def forward(*args: Any, **kwargs: Any) -> Any:
            with mock.patch.object(F, "scaled_dot_product_attention", reused):
                return real(*args, **kwargs)

        self._replace(module, forward)

    def _replace(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self._wrapped.append(module)


def check_reuse(loop: Denoising, model: Any, compiled: Any, oracle: Oracle) -> torch.Tensor:
    """A compiled model's predictions: checked to be the oracle's, which eager's are far from."""
    eager, actual = loop.predictions(model), loop.predictions(compiled)
    expected = torch.stack([first for first, *_ in oracle.run(loop)])
    assert_different(eager, expected)
    assert_same(actual, expected)
    return actual
