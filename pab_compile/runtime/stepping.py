"""Stepping inputs: per-prompt inputs that turn out to change at every step.

Examples are the residuals of a control model, a strength that fades, and other latents. Such an
input is no prompt, so it does not distinguish lanes. It shows after two changes::

    step 0: text A, strength 1.0   a new lane
    step 1: text A, strength 0.9   a new lane
    step 2: text A, strength 0.8   strength steps: this call continues the lane of step 1
    step 3: text A, strength 0.7   the same lane

An input that tells two calls of one step apart (guidance) never counts as stepping. Neither does an
input that may be a prompt (``passes.sites.may_step``).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pab_compile.passes.axes.stated import list_name

from .lane import MAX_LANES, Call, Lane, Lanes


@dataclass(frozen=True, eq=False)
class Entered:
    """The lane of a call.

    Attributes:
        lane: the lane.
        note: what is to be noted, or ``""``.
        is_certain: whether no other lane can be meant. If not, nothing may be reused any more.
    """

    lane: Lane
    note: str = ""
    is_certain: bool = True


def enter_unknown(lanes: Lanes, call: Call, step: int) -> Entered:
    """The lane of a call that belongs to none so far: the one that it continues, or a new one.

    Args:
        lanes: the lanes of the generation. What is learned is noted there.
        call: a call for which they have no lane, or whose lane was called at this step already.
        step: the current step.
    """
    twins = _agreeing(lanes, call, lanes.stepping)
    if lanes.stepping and call.lane is None and any(lane.step == step for lane in twins):
        lane, _ = lanes.open(call, step)
        return Entered(lane, _told_apart(lanes.stepping), is_certain=False)
    note = ""
    if call.lane is None and not call.is_hidden:
        found = _changes(lanes, call, step)
        note = found.reason
        if found.lane is not None and not note:
            lanes.learn(found.names)
            return Entered(found.lane, _learned(found.names))
    lane, is_full = lanes.open(call, step)
    return Entered(lane, note or (_full(lanes, call) if is_full else ""))


def enter_named(lanes: Lanes, lane: Lane, call: Call) -> str:
    """Let a call enter the lane that the user named, although its per-prompt inputs may differ.

    An input that cannot be a prompt is a stepping one. Another prompt makes what was computed from
    the one before useless.

    Returns:
        What is to be noted, or ``""``.
    """
    seen = lanes.seen(call)
    changed, missing = _differing(lane, seen), _missing(lane, seen)
    if not changed | missing:
        return ""
    if not missing and changed <= call.may_step and not _unnamed(lanes):
        lanes.learn(changed)
        return _learned(changed)
    lane.free()
    lane.remember(seen.prompts)
    return (
        f"{_listed(changed | missing)} changed within the lane {lane.name!r}, so what was computed "
        "in it before was not reused: give the calls of each prompt a name of their own"
    )


@dataclass(frozen=True, eq=False)
class _Changes:
    """The inputs in which a call differs from the lanes that it may continue.

    Attributes:
        lane: the lane of the step before, or None.
        names: the inputs that changed at every step.
        reason: why they do not count as stepping, or ``""``.
    """

    lane: Lane | None = None
    names: frozenset[str] = frozenset()
    reason: str = ""


def _changes(lanes: Lanes, call: Call, step: int) -> _Changes:
    """Find the lanes of the steps before that differ from a call in the fewest inputs."""
    before = [lane for lane in _unnamed(lanes) if lane.step == step - 1]
    found = [_changes_since(lane, lanes, call, step) for lane in before]
    found = [changes for changes in found if changes.lane is not None]
    fewest = min(found, key=lambda changes: len(changes.names), default=_Changes())
    return next((changes for changes in found if not changes.reason), fewest)


def _changes_since(last: Lane, lanes: Lanes, call: Call, step: int) -> _Changes:
    """The inputs that changed at every step up to a call, if these lanes are of one prompt."""
    seen = lanes.seen(call)
    names = _differing(last, seen)
    if not names or _missing(last, seen):
        return _Changes()
    chain = sorted(_agreeing(lanes, call, lanes.stepping | names), key=lambda lane: lane.step)
    steps = [lane.step for lane in chain]
    before = sorted(set(steps) - {step})
    if len(before) < 2 or before != list(range(before[0], step)):
        return _Changes()
    if any(lane.first_step < lane.step for lane in chain if lane.step > before[0]):
        return _Changes()
    if (prompts := [name for name in names if name not in call.may_step]) != []:
        return _Changes(last, names, _may_be_prompts(prompts))
    ignored = lanes.stepping | names
    if len(set(steps)) < len(steps) or step in steps or _have_twins(lanes, ignored):
        return _Changes(last, names, _told_apart(names))
    for earlier, later in itertools.pairwise(chain):
        if any(earlier.prompts[name].is_equal(later.prompts[name]) for name in sorted(names)):
            return _Changes()
    return _Changes(last, names)


def _unnamed(lanes: Lanes) -> list[Lane]:
    return [lane for lane in lanes if lane.name is None]


def _agreeing(lanes: Lanes, call: Call, ignored: Collection[str]) -> list[Lane]:
    """The unnamed lanes whose prompts are a call's, apart from some inputs, in its place."""
    return [
        lane
        for lane in _unnamed(lanes)
        if lanes.share_place(lane, call)
        and lane.carries(call.prompts, [n for n in _names(lane, call) if n not in ignored])
    ]


def _names(lane: Lane, call: Call) -> Sequence[str]:
    """The inputs that distinguish lanes, in a fixed order."""
    return sorted(call.prompts.keys() | lane.prompts.keys()) if call.names is None else call.names


def _differing(lane: Lane, call: Call) -> frozenset[str]:
    """The inputs whose values are others in a call than in a lane."""
    return frozenset(
        name
        for name in _names(lane, call)
        if name in lane.prompts
        and name in call.prompts
        and not lane.prompts[name].is_same(call.prompts[name])
    )


def _missing(lane: Lane, call: Call) -> frozenset[str]:
    """The inputs that only one of a lane and a call has."""
    return frozenset(_names(lane, call)) & (call.prompts.keys() ^ lane.prompts.keys())


def _have_twins(lanes: Lanes, ignored: Collection[str]) -> bool:
    """Whether two calls of one step differ in nothing but some inputs."""
    return any(
        one.step == other.step and one.agrees(other, ignored) and lanes.share_place(one, other)
        for one, other in itertools.combinations(_unnamed(lanes), 2)
    )


def _listed(names: Iterable[str]) -> str:
    """Names of inputs as text. Entries of a list count as the list."""
    lists = sorted({list_name(name) for name in names})
    return ", ".join(repr(name) for name in lists)


def _stated(names: Iterable[str]) -> str:
    """The option that states that inputs change at every step."""
    axes = ", ".join(f'"{name}": "step"' for name in sorted({list_name(name) for name in names}))
    return f'options={{"axes": {{{axes}}}}}'


def _learned(names: Collection[str]) -> str:
    return (
        f"{_listed(names)} changed from step to step. Until this showed, nothing was reused: "
        f"{_stated(names)} says it from the start"
    )


def _may_be_prompts(prompts: Collection[str]) -> str:
    return (
        f"{_listed(prompts)} changed at every step and may be a prompt, so nothing was reused: if "
        f"it is none, state {_stated(prompts)}"
    )


def _told_apart(names: Collection[str]) -> str:
    return (
        f"only {_listed(names)} distinguished two calls of one step, and this changed at every "
        "step, so nothing was reused: it is unknown which calls belong together; name them with "
        "pab_compile.step(..., lane=...)"
    )


def _full(lanes: Lanes, call: Call) -> str:
    names = _differing(_unnamed(lanes)[-2], lanes.seen(call))
    return (
        f"there were more than {MAX_LANES} lanes without a name, so the oldest was dropped and its "
        f"outputs were not reused: the calls differ in {_listed(names)}; name them with "
        "pab_compile.step(..., lane=...), which has no limit"
    )
