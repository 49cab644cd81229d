"""Values of single options: what each may be, and the error for anything else."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pab_compile.errors import OptionError
from pab_compile.passes.axes.words import wrong_word
from pab_compile.passes.sites.site import KINDS

from .dynamo import known_backends
from .plans.hints import near_miss, preset_meant
from .plans.levels import LEVELS
from .plans.plan import MAX_ORDER
from .plans.presets import PRESETS


def check_choice(option: str, value: Any, choices: Iterable[str]) -> None:
    """Check an option that is one of several words.

    Raises:
        OptionError: it is something else.
    """
    if value not in tuple(choices):
        raise OptionError(f"{option}={value!r} is not a choice.{near_miss(value, choices)}")


def check_inner(inner: Any) -> None:
    """Check the inner compiler.

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(inner, str) and not callable(inner):
        raise OptionError(f"inner is the name of a backend or a callable, got {inner!r}.")
    if isinstance(inner, str) and inner not in (known := known_backends()):
        near = difflib.get_close_matches(inner, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OptionError(
            f"inner={inner!r} is no registered backend of torch.compile.{hint} "
            "torch.compiler.list_backends() lists them."
        )


def check_kind(option: str, kind: Any) -> None:
    """Check a kind of sites.

    Raises:
        OptionError: it is something else.
    """
    if kind not in KINDS:
        raise OptionError(f"{option}: unknown kind {kind!r}.{near_miss(kind, KINDS)}")


def check_ranges(ranges: Any) -> None:
    """Check ranges, or the name of a preset.

    Raises:
        OptionError: it is something else.
    """
    if isinstance(ranges, str):
        if ranges not in PRESETS:
            raise OptionError(f"Unknown preset {ranges!r}.{preset_meant(ranges)}")
        return
    if not isinstance(ranges, Mapping):
        raise OptionError(f"ranges maps kinds to integers or names a preset, got {ranges!r}.")
    for kind, value in ranges.items():
        check_kind("ranges", kind)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(
                f"ranges[{kind!r}]={value!r}: a range is an integer of at least 1 "
                "(1 computes at every step, n at every n-th)."
            )


def check_plan_name(plan: str) -> None:
    """Refuse the name of a preset or a level where the path of a plan file is asked for.

    Raises:
        OptionError: it is such a name.
    """
    if plan in PRESETS:
        raise OptionError(
            f"plan={plan!r} names a preset, and plan is a function, the path of a plan file, or "
            f'what tune returned. Give ranges="{plan}" instead.'
        )
    if plan in LEVELS:
        raise OptionError(f"plan={plan!r} is no plan.{preset_meant(plan)}")


def check_window(window: Any) -> None:
    """Check the window of a plan.

    Raises:
        OptionError: it is something else.
    """
    if window is None:
        return
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise OptionError(f"window is a pair (low, high), got {window!r}.")
    low, high = window
    if type(low) is not type(high) or not isinstance(low, (int, float)) or isinstance(low, bool):
        raise OptionError(
            f"window={window!r}: both bounds are floats (fractions of the steps) or both are "
            "integers (timestep values)."
        )
    if low >= high:
        raise OptionError(f"window={window!r} is reversed or empty: low must be below high.")
    if isinstance(low, float) and not 0 <= low < high <= 1:
        raise OptionError(
            f"window={window!r}: fractions of the steps lie in [0, 1]; use integers for timesteps."
        )
    if isinstance(low, int) and low < -1:
        raise OptionError(f"window={window!r}: timestep values are not negative.")


def check_predict(predict: Any) -> None:
    """Check orders of prediction.

    Raises:
        OptionError: it is something else.
    """
    orders = predict if isinstance(predict, Mapping) else {None: predict}
    for kind, order in orders.items():
        if kind is not None:
            check_kind("predict", kind)
        name = "predict" if kind is None else f"predict[{kind!r}]"
        if isinstance(order, bool) or not isinstance(order, int) or not 0 <= order <= MAX_ORDER:
            raise OptionError(
                f"{name}={order!r}: an order of prediction is 0 (repeat), 1 (linear) or "
                f"{MAX_ORDER} (quadratic)."
            )


def check_axes(axes: Any) -> None:
    """Check stated axes.

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(axes, Mapping) or not all(
        isinstance(name, str) and isinstance(value, str) for name, value in axes.items()
    ):
        raise OptionError(
            f'axes maps input names to axes, such as {{"x": "b c t h w"}}, got {axes!r}.'
        )
    for name, value in axes.items():
        if wrong := wrong_word(value):
            raise OptionError(f"axes[{name!r}]={value!r}: {wrong}")
