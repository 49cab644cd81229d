"""Sites with a memory: they make a model its own oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from helpers.oracle import extrapolate


@dataclass
class Now:
    """Where a generation is, and what its sites do.

    Attributes:
        cut: which sites reuse: ``attention`` (before the gate) or ``branch`` (all that is added).
        ranges: kind -> compute at every so many steps.
        order: of the reuse.
        step: the step.
        lane: the lane.
        everything: all of them reuse, and so does what only feeds them. The rest is the ideal.
        memory: site, lane and number of its run within the step -> steps and results.
        runs: site -> how often it has run at this step.
        computed: kind -> computations.
        reused: kind -> reuses.
    """

    cut: str
    ranges: Mapping[str, int]
    order: int = 0
    step: int = 0
    lane: str = ""
    everything: bool = False
    memory: dict[tuple[Site, str, int], list[tuple[int, Any]]] = field(default_factory=dict)
    runs: Counter[Site] = field(default_factory=Counter)
    computed: Counter[str] = field(default_factory=Counter)
    reused: Counter[str] = field(default_factory=Counter)

    def at(self, step: int, lane: str, everything: bool = False) -> Now:
        """The same generation at another call."""
        self.step, self.lane, self.everything = step, lane, everything
        self.runs.clear()
        return self

    def is_in_charge(self, site: Site) -> bool:
        """Whether a site reuses at all."""
        return site.cut == self.cut and self.ranges.get(site.kind, 1) > 1

    def repeats(self, site: Site) -> bool:
        """Whether a site reuses now."""
        if self.everything:
            once = site.cut == "prompt" or (site.cut == "modulation" and self.cut == "branch")
            return once or self.is_in_charge(site)
        return self.is_in_charge(site) and self.step % self.ranges[site.kind] != 0


class Site(nn.Module):
    """Runs a function, or predicts its result from those before.

    Attributes:
        kind: of the attention inside; ``mlp`` for none.
        cut: ``attention`` or ``branch`` (what is reused), ``prompt`` (the same at every step),
            ``modulation`` (what only branches read) or ``always``.
        now: where the generation is; None runs the function.
    """

    def __init__(self, kind: str, cut: str) -> None:
        super().__init__()
        self.kind, self.cut = kind, cut
        self.now: Now | None = None

    def forward(self, function: Callable[[], Any]) -> Any:
        """What the function returns; a tensor, or several."""
        if self.now is None:
            return function()
        return self._told(function, self.now)

    def _told(self, function: Callable[[], Any], now: Now) -> Any:
        known = now.memory.setdefault((self, now.lane, now.runs[self]), [])
        now.runs[self] += 1
        if now.repeats(self):
            if now.is_in_charge(self) and not now.everything:
                now.reused[self.kind] += 1
            used = known[-1 - now.order :] if now.is_in_charge(self) else known[-1:]
            return _predicted(used, now.step)
        if now.is_in_charge(self) and not now.everything:
            now.computed[self.kind] += 1
        value = function()
        known.append((now.step, pytree.tree_map_only(torch.Tensor, torch.clone, value)))
        return value


def _predicted(used: list[tuple[int, Any]], step: int) -> Any:
    """The line through values at some steps, at a later one."""
    if len(used) == 1:
        return used[0][1]
    flat = [pytree.tree_flatten(value) for _, value in used]
    rows = zip(*(leaves for leaves, _ in flat), strict=True)
    steps = [known for known, _ in used]
    found = [extrapolate(list(zip(steps, row, strict=True)), step) for row in rows]
    return pytree.tree_unflatten(found, flat[0][1])


def tell(model: nn.Module, now: Now | None) -> None:
    """Let all sites of a model know where its generation is; None makes it the plain model."""
    for site in model.modules():
        if isinstance(site, Site):
            site.now = now
