"""Rows: entries that a few numbers describe, for a sampler that adds up the model's outputs.

The steps ``p[0] < p[1] < ...`` compute. Between two of them the sampler adds a combination of the
last computed outputs to the latents. Only the sum of these moves matters, so each gap has one
number per output. It is spread over the steps of the gap with the least change of the weights,
from those of the line through the last two outputs. With ``b`` the length of a step::

    w[s, j] = line[s, j] + change[j] * b[s] / sum of b squared
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pab_compile.calibration.observation import lagrange
from pab_compile.plans.plan import COMPUTE, MAX_ORDER, Entry


@dataclass(frozen=True)
class Row:
    """Computed steps, and the change of the weights in each gap.

    Attributes:
        lengths: of the steps, in any unit.
        computed: the steps that compute, the first one is 0.
        changes: one per computed step: what is added to the weights of the outputs in the gap after
            it, the oldest output first.
    """

    lengths: tuple[float, ...]
    computed: tuple[int, ...]
    changes: tuple[tuple[float, ...], ...]

    @staticmethod
    def of(lengths: Sequence[float], computed: Sequence[int]) -> Row:
        """A row that follows the line through the last two outputs."""
        changes = [(0.0,) * min(gap + 1, MAX_ORDER + 1) for gap in range(len(computed))]
        return Row(tuple(lengths), tuple(computed), tuple(changes))

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.lengths)

    def end(self, gap: int) -> int:
        """The step after a gap."""
        return self.computed[gap + 1] if gap + 1 < len(self.computed) else self.num_steps

    @property
    def gaps(self) -> list[int]:
        """The gaps in which a step reuses."""
        return [gap for gap, step in enumerate(self.computed) if self.end(gap) > step + 1]

    def changed(self, gap: int, change: Sequence[float]) -> Row:
        """The row with a further change in a gap."""
        old = self.changes[gap]
        new = tuple(float(a + b) for a, b in zip(old, change, strict=True))
        return replace(self, changes=(*self.changes[:gap], new, *self.changes[gap + 1 :]))

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
