"""Rows: entries that a few numbers describe, for a sampler that adds up the model's outputs.

The steps ``p[0] < p[1] < ...`` compute. Between two of them the sampler adds a combination of the
last computed outputs to the latents. Only the sum of these moves matters, so each gap has one
number per output. It is spread over the steps of the gap with the least change of the weights,
from those of the line through the last two outputs. With ``b`` the length of a step::

    w[s, j] = line[s, j] + change[j] * b[s] / sum of b squared

Some of the steps may compute one of two prompts only (``plans.guidance``). Each of them has one
more number per guidance difference that it combines. A *stage* is a computed step with the gap
after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pab_compile.calibration.observation import lagrange
from pab_compile.plans.guidance import GuidancePlan
from pab_compile.plans.plan import COMPUTE, MAX_ORDER, Entry, Weights

_DIFFERENCES = 2
"""Most guidance differences that a step combines."""


@dataclass(frozen=True)
class Row:
    """Computed steps, and the change of the weights in each gap.

    Attributes:
        lengths: of the steps, in any unit.
        computed: the steps that compute, the first one is 0.
        changes: one per computed step: what is added to the weights of the outputs in the gap after
            it, the oldest output first.
        guides: one per computed step: the weights of the guidance differences if it computes one of
            two prompts, the oldest first; None if it computes both.
    """

    lengths: tuple[float, ...]
    computed: tuple[int, ...]
    changes: tuple[tuple[float, ...], ...]
    guides: tuple[Weights | None, ...]

    @staticmethod
    def of(lengths: Sequence[float], computed: Sequence[int], halves: Collection[int] = ()) -> Row:
        """A row that follows the line through the last two outputs and differences.

        Args:
            lengths: of the steps.
            computed: the steps that compute.
            halves: those of them that compute one of two prompts.
        """
        changes = [(0.0,) * min(gap + 1, MAX_ORDER + 1) for gap in range(len(computed))]
        guides: list[Weights | None] = [None] * len(computed)
        for stage, step in enumerate(computed):
            if step in halves:
                whole = [float(s) for s in computed[:stage] if s not in halves]
                guides[stage] = tuple(lagrange(whole[-_DIFFERENCES:], float(step)))
        return Row(tuple(lengths), tuple(computed), tuple(changes), tuple(guides))

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.lengths)

    @property
    def cost(self) -> float:
        """Number of steps that compute. Those with one of two prompts count half."""
        return len(self.computed) - sum(guide is not None for guide in self.guides) / 2

    def end(self, stage: int) -> int:
        """The step after a gap."""
        return self.computed[stage + 1] if stage + 1 < len(self.computed) else self.num_steps

    def has_gap(self, stage: int) -> bool:
        """Whether a step reuses after a computed one."""
        return self.end(stage) > self.computed[stage] + 1

    @property
    def gaps(self) -> list[int]:
        """The stages in which a step reuses."""
        return [stage for stage in range(len(self.computed)) if self.has_gap(stage)]

    @property
    def stages(self) -> list[int]:
        """The stages with a number."""
        return [stage for stage in range(len(self.computed)) if self.count(stage)]

    def count(self, stage: int) -> int:
        """How many numbers a stage has."""
        outputs = len(self.changes[stage]) if self.has_gap(stage) else 0
        return outputs + len(self.guides[stage] or ())

    def changed(self, stage: int, change: Sequence[float]) -> Row:
        """The row with a further change in a stage: of its outputs, then of its differences."""
        numbers, guide = list(map(float, change)), self.guides[stage]
        outputs, guides = list(self.changes), list(self.guides)
        if self.has_gap(stage):
            count = len(outputs[stage])
            outputs[stage] = _sum(outputs[stage], numbers[:count])
            numbers = numbers[count:]
        if guide is not None:
            guides[stage] = _sum(guide, numbers)
        return replace(self, changes=tuple(outputs), guides=tuple(guides))

    def guidance(self, prompts: str, computes: str) -> GuidancePlan | None:
        """What a plan says of guidance; None if every computed step computes both prompts."""
        if not any(guide is not None for guide in self.guides):
            return None
        weights: list[Weights | None] = [None] * self.num_steps
        for step, guide in zip(self.computed, self.guides, strict=True):
            weights[step] = guide
        return GuidancePlan(prompts, computes, tuple(weights))

    def entries(self) -> tuple[Entry, ...]:
        """One per step."""
        entries: list[Entry] = [COMPUTE] * self.num_steps
        for gap in self.gaps:
            sources = self.computed[max(0, gap - MAX_ORDER) : gap + 1]
            steps = range(sources[-1] + 1, self.end(gap))
            total = sum(self.lengths[step] ** 2 for step in steps)
            for step in steps:
                line, share = _line(sources, step), self.lengths[step] / total
                entries[step] = tuple(
                    float(weight + share * change)
                    for weight, change in zip(line, self.changes[gap], strict=True)
                )
        return tuple(entries)


def _sum(numbers: Sequence[float], others: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(a + b) for a, b in zip(numbers, others, strict=True))


def _line(sources: Sequence[int], step: int) -> list[float]:
    """Weights of the line through the last two outputs; older ones have none."""
    used = [float(source) for source in sources[-2:]]
    return [0.0] * (len(sources) - len(used)) + list(lagrange(used, float(step)))


def lengths_of(timesteps: Sequence[float]) -> list[float]:
    """How far the sampler goes at each step, in units of the mean.

    Falling timesteps end at 0. After rising ones the last step is as long as the step before.
    """
    steps = [abs(b - a) for a, b in itertools.pairwise(timesteps)]
    is_falling = len(timesteps) > 1 and timesteps[-1] < timesteps[0]
    last = abs(timesteps[-1]) if is_falling else steps[-1] if steps else 1.0
    steps.append(last)
    mean = sum(steps) / len(steps)
    return [max(step / mean, 1e-3) for step in steps] if mean > 0 else [1.0] * len(steps)
