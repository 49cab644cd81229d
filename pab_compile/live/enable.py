"""``enable``: compile a model or a whole pipeline, with a plan that can be exchanged."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pab_compile.errors import OptionError
from pab_compile.options import Options, read_options
from pab_compile.plans.levels import DEFAULT
from pab_compile.plans.live import LivePlan

from .buckets import read_buckets
from .choose import RULE, SHAPE, choice_of
from .find import find_denoisers
from .handle import Handle

_RANKS = ("mesh", "sequence_parallel", "batch_mesh", "batch_parallel", "shard")


def enable(
    target: Any,
    level: str | None = None,
    *,
    options: Options | Mapping[str, Any] | str | Path | None = None,
    dynamic: bool | None = None,
    buckets: Mapping[str, Any] | None = None,
    **more: Any,
) -> Handle:
    """Compile every denoising module of a pipeline, or one module, in place.

    It is a thin layer over ``module.compile(backend="pab")``. The returned handle exchanges the
    plan without compiling again.

    Args:
        target: a pipeline of diffusers, an object with modules as attributes, or a module.
        level: ``quality``, ``balanced``, ``fast`` or ``ultra``, the name of a preset, or ``off``.
            None: ``balanced``, unless ``ranges`` or ``plan`` is given.
        options: options of the backend, as for ``torch.compile``. ``level`` may be among them.
        dynamic: as for ``torch.compile``. None: a size is left open once it has changed. False:
            every size has pieces of its own.
        buckets: name of a prompt input -> number. Its tokens are padded to a multiple of this, and
            masked. Or (number, name of the mask). With ``dynamic=False`` few lengths are compiled.
        **more: options by their names. They replace those of ``options``.

    Returns:
        The handle.

    Raises:
        OptionError: an option is wrong.
        PlanError: a plan file is malformed, or the plan was tuned on another architecture.
        UnsupportedModelError: nothing that denoises was found, or it is compiled already.
    """
    given = {**read_options(options), **more}
    named = given.pop("level", None)
    buckets = given.pop("buckets", None) if buckets is None else buckets
    dynamic = given.pop("dynamic", None) if dynamic is None else dynamic
    level = named if level is None else level
    rule = {name: given.pop(name) for name in RULE if name in given}
    if rule and level is not None:
        raise OptionError(
            f"level={level!r} and {', '.join(rule)} were given together. A level is a plan of its "
            'own: give the one or the other. A preset with changes is ranges="linear3" with them.'
        )
    if level is not None and not isinstance(level, str):
        raise OptionError(f"level is the name of a level or a preset, got {level!r}.")
    choice = choice_of(rule or level or DEFAULT, given)  # it checks all options
    if any(given.get(name) is not None for name in _RANKS):
        raise OptionError(
            "enable and ranks that share a generation were given together: all of them would have "
            "to change the plan at the same step. Use torch.compile(model, backend='pab', ...)."
        )
    modules = find_denoisers(target, given.get("axes", {}))
    pipeline = _reference(target)
    live = LivePlan(choice, lambda: _timesteps(pipeline()))
    compiling = {name: value for name, value in given.items() if name not in SHAPE}
    padding = {} if buckets is None else read_buckets(buckets)
    return Handle(modules, live, given, {**compiling, "plan": live}, dynamic, padding)


def _reference(target: Any) -> Callable[[], Any]:
    """Gives the pipeline. The modules hold the plan, so the plan should not keep them alive."""
    try:
        return weakref.ref(target)
    except TypeError:  # its class has no room for one
        return lambda: target


def _timesteps(target: Any) -> Sequence[Any]:
    """The timesteps of a pipeline's scheduler, if it has set them."""
    found = getattr(getattr(target, "scheduler", None), "timesteps", None)
    return () if found is None else (found,)
