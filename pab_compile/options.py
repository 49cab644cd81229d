"""Options of the backend. They are validated once and never change afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from pab_compile.errors import OptionError
from pab_compile.passes.sites.site import CUTS, KINDS, OUTPUT

from .auto_split import AUTO_SHARD, AutoSplit
from .dynamo import known_modes
from .option_ranks import check_ranks
from .option_text import read_text
from .option_values import (
    check_axes,
    check_choice,
    check_inner,
    check_plan_name,
    check_predict,
    check_ranges,
    check_window,
)
from .plans.budget import DEFAULT_BUDGET, Budget, check_budget
from .plans.cache_dtype import AUTO, dtype_of
from .plans.hints import option_meant
from .plans.keeping import Keeping
from .plans.live import LivePlan
from .plans.plan import CallablePlan, Plan, RangePlan
from .plans.plan_file import PREDICT_IN, load_plan
from .plans.presets import DEFAULT_RANGES, DEFAULT_WINDOW, PRESETS, Window
from .plans.step_plan import StepPlan

_ADDED = ("gated", "branch")  # cuts at what is added to the stream, so that sums can take its place
FIRST_RANK = "first rank"
INPUTS = ("checked", FIRST_RANK)
ON_UNSUPPORTED = ("raise", "passthrough")
BACKGROUND = "background"
WARM = (BACKGROUND,)
GRAPH_MODES = ("reduce-overhead", "max-autotune")


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(model, backend="pab", options={...})`` accepts.

    Attributes:
        ranges: kind -> compute at every n-th step; or the name of a preset. A preset also sets
            window, predict, cut and coalesce. Each of them can be given to replace its value.
        window: (low, high), the part of the generation in which reuse is allowed. Float bounds are
            fractions of the steps; low belongs to the window, high does not. Integer bounds are
            timestep values, and neither belongs to it. None: (0.15, 0.85).
        predict: order of the reuse: 0 repeats, 1 extrapolates linearly, 2 quadratically. An
            integer, or a mapping from kind to integer.
        predict_in: orders 1 and 2 extrapolate in the ``step`` or in the ``timestep``.
        cut: ``attention`` caches an attention before its gate, ``gated`` after it. ``branch``
            caches all that is added to the stream, also where an MLP runs beside the attention.
            ``output`` caches what the model returns: nothing but its latents and timestep must be
            known, so it fits any model. The only kind is then ``output``.
        coalesce: sites that the plan always reuses together cache the sum of their outputs. If it
            is not given, ranges with a ``cache_budget`` and the cut ``gated`` or ``branch`` do so.
        plan: a function, the path of a plan file, or what ``tune`` returned. It replaces ranges,
            window and predict.
            ``enable`` puts a plan here that can be exchanged.
        cache_budget: memory for the caches of one generation: bytes, a text such as ``"8GiB"``, or
            a float, the fraction of what is free on the device. All calls of a step share it. The
            sites that save the most operations per byte are cached, and the others compute at
            every step. None: 0.5; any amount if ranks share a generation, or with
            ``cache_offload``.
        cache_dtype: what is cached is kept in this dtype: ``bfloat16``, ``float16`` or
            ``float8_e4m3``, as a name or a torch dtype. Only wider tensors of floating point are
            converted, and converted back where they are reused. None: as computed. ``auto``: as
            computed while the budget holds all sites, else ``float8_e4m3``.
        cache_offload: what is cached waits in the memory of the host and is copied back before it
            is reused. With ``cache_budget``, only what the budget does not hold. It changes nothing
            on a CPU.
        inner: compiler of the pieces: ``inductor``, ``eager``, a registered backend, or a function
            like a backend.
        mode: the ``mode`` of ``torch.compile``, for Inductor: ``default``, ``reduce-overhead``,
            ``max-autotune`` or ``max-autotune-no-cudagraphs``. The installed Inductor may have
            more. None: as ``default``.
        warm: ``background`` lets pieces run uncompiled until a thread has compiled them, so that
            the first generation need not wait. None: a piece is compiled at its first call.
        axes: input name -> its axes, such as ``"b c t h w"``, if they cannot be inferred.
            ``"step"`` marks the timestep, or another input that changes at every step.
            ``"prompt"`` marks an input that stays the same for a whole generation. The name of a
            list or dict means all of its entries.
        mesh: an axis of a ``DeviceMesh`` (``mesh["sp"]``). Its ranks share the tokens.
        sequence_parallel: the number of ranks that share the tokens. It replaces mesh if all ranks
            run this model.
        batch_mesh: an axis of a ``DeviceMesh`` (``mesh["cfg"]``). Its ranks share the rows of the
            batch, such as the two prompts of guidance in one call. If calls have one row, each of
            two ranks computes one of the two calls of guidance.
        batch_parallel: the number of ranks that share the rows of the batch. It replaces
            batch_mesh. With ``sequence_parallel``, successive ranks share tokens.
        shard: the axis of the tokens to shard: ``t``, ``h``, ``w``, or ``s`` for all in one;
            ``packed`` for a sequence of prompts and tokens as the model packs it. None:
            the axis for which the ranks exchange the fewest bytes. ``auto``: the ranks of ``mesh``,
            or all processes, share tokens and batch in the way that takes the least predicted time.
            ``pab_compile.AutoSplit`` states the devices, and two calls per step.
        ring_parallel: the number of ranks of a ring. Of the ranks that share the tokens, neighbours
            share the heads of attention over all tokens, and those of a ring pass keys and values
            on. None: rings are made where an attention has fewer heads than there are ranks.
        inputs: what ranks that share a generation do with their inputs. ``checked``: they compare
            prints of them and raise an error if they differ. ``first rank``: those of the first
            rank are sent to all. Every rank still needs the same schedule.
        dump: directory for dumps of every pass. If it is not given, the environment variable
            ``PAB_DUMP`` names the directory.
        on_unsupported: ``raise``, or ``passthrough`` to compile without reuse after one warning.
    """

    ranges: Mapping[str, int] | str = field(default_factory=lambda: dict(DEFAULT_RANGES))
    window: Window | None = None
    predict: int | Mapping[str, int] = 0
    predict_in: str = "step"
    cut: str = "attention"
    coalesce: bool = False
    plan: Callable[..., int | None] | str | Path | LivePlan | None = None
    cache_budget: Budget | None = None
    cache_dtype: str | torch.dtype | None = None
    cache_offload: bool = False
    inner: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    warm: str | None = None
    axes: Mapping[str, str] = field(default_factory=dict)
    mesh: Any = None
    sequence_parallel: int | None = None
    batch_mesh: Any = None
    batch_parallel: int | None = None
    shard: str | AutoSplit | None = None
    ring_parallel: int | None = None
    inputs: str = "checked"
    dump: str | Path | None = None
    on_unsupported: str = "raise"

    @property
    def keeping(self) -> Keeping:
        """How the outputs of sites are kept."""
        budget, is_given = self.cache_budget, self.cache_budget is not None
        if not is_given and not self.cache_offload and not self.is_shared:
            budget = DEFAULT_BUDGET
        narrows = self.cache_dtype == AUTO
        dtype = dtype_of(self.cache_dtype)
        return Keeping(dtype, budget, self.cache_offload, is_given, narrows)

    @property
    def num_ranks(self) -> int:
        """Number of ranks that share the tokens."""
        return self.mesh.size() if self.mesh is not None else self.sequence_parallel or 1

    @property
    def num_batch_ranks(self) -> int:
        """Number of ranks that share the rows of the batch."""
        return self.batch_mesh.size() if self.batch_mesh is not None else self.batch_parallel or 1

    @property
    def auto(self) -> AutoSplit | None:
        """What is assumed if ranks find how they share a generation. None if they do not."""
        if isinstance(self.shard, AutoSplit):
            return self.shard
        return AutoSplit() if self.shard == AUTO_SHARD else None

    @property
    def axis(self) -> str | None:
        """The axis of the tokens that the ranks share, if it is known."""
        return self.shard if isinstance(self.shard, str) and self.auto is None else None

    @property
    def is_shared(self) -> bool:
        """Whether ranks share a generation."""
        return self.num_ranks * self.num_batch_ranks > 1 or self.auto is not None

    def make_plan(self) -> Plan:
        """The plan that these options describe. A live plan gives the one that holds now."""
        if isinstance(self.plan, LivePlan):
            return self.plan.current().plan
        if (tuned := _tuned(self.plan)) is not None:
            return tuned
        if callable(self.plan):
            return CallablePlan(self.plan)
        if self.plan is not None:
            return load_plan(self.plan)
        ranges = PRESETS[self.ranges].ranges if isinstance(self.ranges, str) else self.ranges
        if isinstance(self.predict, Mapping):
            predict = dict(self.predict)
        else:
            predict = dict.fromkeys(KINDS, self.predict)
        low, high = self.window or DEFAULT_WINDOW
        return RangePlan(dict(ranges), (low, high), predict)


GivenOptions = Options | Mapping[str, Any] | str | Path | None
"""Options as a user may give them: as an object, a mapping, JSON or YAML text, or a file."""


def read_options(options: GivenOptions) -> dict[str, Any]:
    """Options by their names, as they were given, without validation.

    Args:
        options: a mapping; an ``Options`` object, in which a field with its default value counts as
            not given; JSON or YAML text, or the path of a file (``option_text.read_text``).

    Raises:
        OptionError: they are none of these, or the text is malformed.
    """
    if options is None:
        return {}
    if isinstance(options, Options):
        usual = Options()
        values = {f.name: getattr(options, f.name) for f in fields(Options)}
        return {
            n: v for n, v in values.items() if v is not getattr(usual, n) and v != getattr(usual, n)
        }
    if isinstance(options, Mapping):
        return dict(options)
    if not isinstance(options, (str, Path)):
        raise OptionError(
            f"options are a mapping, an Options object, JSON text or a JSON file, got {options!r}."
        )
    return read_text(options)


def parse_options(options: GivenOptions, mode: str | None = None) -> Options:
    """Validate the options of a ``torch.compile`` call.

    Args:
        options: as the user gave them (``read_options``).
        mode: the ``mode`` of ``torch.compile``; ``options["mode"]`` does the same.

    Raises:
        OptionError: names the option, what was found and what is accepted.
    """
    given = read_options(options)
    known = [f.name for f in fields(Options)]
    for name in given:
        if name not in known:
            raise OptionError(f"Unknown option {name!r}.{option_meant(name, given[name], known)}")
    if mode is not None:
        given.setdefault("mode", mode)
    given.setdefault("dump", os.environ.get("PAB_DUMP") or None)
    parsed = Options(**given)
    check_choice("cut", parsed.cut, CUTS)
    check_choice("inputs", parsed.inputs, INPUTS)
    check_choice("on_unsupported", parsed.on_unsupported, ON_UNSUPPORTED)
    check_ranges(parsed.ranges)
    check_window(parsed.window)
    check_predict(parsed.predict)
    check_choice("predict_in", parsed.predict_in, PREDICT_IN)
    check_axes(parsed.axes)
    if parsed.cache_budget is not None:
        check_budget(parsed.cache_budget)
    dtype_of(parsed.cache_dtype)
    if parsed.cache_dtype == AUTO and parsed.cache_offload:
        raise OptionError(
            "cache_dtype='auto' and cache_offload were given together. Both are for a device that "
            "is too small for the caches: give one of them, or a dtype instead of 'auto'."
        )
    _check_plan(parsed, given)
    parsed = _as_preset(_as_calibrated(parsed, given), given)
    if parsed.cache_budget is not None and parsed.plan is None and parsed.cut in _ADDED:
        parsed = replace(parsed, coalesce=given.get("coalesce", True))
    check_ranks(parsed)
    if parsed.cut == OUTPUT:
        _check_output(parsed)
        parsed = replace(parsed, coalesce=False)  # there is one site
    elif parsed.plan is None and isinstance(parsed.ranges, Mapping):
        _check_not_only_output(parsed.ranges)
    if parsed.dump is not None and not isinstance(parsed.dump, (str, Path)):
        raise OptionError(f"dump is the path of a directory, got {parsed.dump!r}.")
    for name in ("coalesce", "cache_offload"):
        if not isinstance(value := getattr(parsed, name), bool):
            raise OptionError(f"{name} is True or False, got {value!r}.")
    if parsed.mode is not None:
        check_choice("mode", parsed.mode, known_modes())
    check_inner(parsed.inner)
    if parsed.warm is not None:
        _check_warm(parsed)
    return parsed


def _check_warm(parsed: Options) -> None:
    """Refuse what cannot be compiled in the background."""
    check_choice("warm", parsed.warm, WARM)
    if parsed.inner != "inductor":
        raise OptionError(
            f"warm={parsed.warm!r} lets Inductor compile in the background, and inner="
            f"{parsed.inner!r} is another compiler. Leave one of them out."
        )
    if parsed.mode in GRAPH_MODES:
        raise OptionError(
            f"warm={parsed.warm!r} and mode={parsed.mode!r} were given together. CUDA graphs "
            "belong to the thread that makes them: leave one out, or take "
            "'max-autotune-no-cudagraphs'."
        )
    if parsed.is_shared:
        raise OptionError(
            f"warm={parsed.warm!r} was given, and ranks share a generation. They compile "
            "together: leave warm out."
        )


def _check_output(parsed: Options) -> None:
    """Refuse what does not go with ``cut="output"``."""
    if isinstance(parsed.ranges, str):
        ranges: Mapping[str, int] = PRESETS[parsed.ranges].ranges
    else:
        ranges = parsed.ranges
    if parsed.plan is None and ranges and OUTPUT not in ranges:
        said = "the default ranges say" if ranges == DEFAULT_RANGES else f"ranges={ranges!r} says"
        raise OptionError(
            f"cut='output' has sites of the kind 'output' only, and {said} nothing of it, so "
            'nothing would be reused. Give ranges="linear3", ranges={"output": 3}, or a plan.'
        )
    if parsed.is_shared:
        num_ranks = parsed.num_ranks * parsed.num_batch_ranks
        which = "shard='auto'" if parsed.auto else f"{num_ranks} ranks that share a generation"
        raise OptionError(
            f"cut='output' and {which} were given together. Use another cut, or one rank."
        )


def _check_not_only_output(ranges: Mapping[str, int]) -> None:
    """Refuse ranges of the kind ``output`` alone, where no site has it."""
    if set(ranges) == {OUTPUT} and ranges[OUTPUT] > 1:
        raise OptionError(
            f"ranges={dict(ranges)!r} says when to reuse a whole output, but cut='attention' and "
            "the other cuts cache parts of it, so nothing would be reused. Add cut='output'."
        )


def _check_plan(parsed: Options, given: Mapping[str, Any]) -> None:
    if parsed.plan is None:
        return
    is_plan = isinstance(parsed.plan, (str, Path, LivePlan)) or _tuned(parsed.plan) is not None
    if not callable(parsed.plan) and not is_plan:
        raise OptionError(
            "plan is a callable, the path of a plan file, or what tune returned; got "
            f"{parsed.plan!r}."
        )
    if isinstance(parsed.plan, str) and not Path(parsed.plan).exists():
        check_plan_name(parsed.plan)
    clash = [name for name in ("ranges", "window", "predict") if name in given]
    if clash:
        raise OptionError(
            f"plan and {', '.join(clash)} were given together, and a plan replaces "
            f"{', '.join(clash)}: give the one or the other."
        )


def _tuned(plan: Any) -> StepPlan | None:
    """The plan in what ``tune`` returned; None for anything else."""
    found = getattr(plan, "plan", None)
    return found if isinstance(found, StepPlan) else None


def _as_preset(parsed: Options, given: Mapping[str, Any]) -> Options:
    """The options with those of the preset, if one is named."""
    if not isinstance(parsed.ranges, str):
        return parsed
    preset = PRESETS[parsed.ranges]
    names = [name for name in ("window", "predict", "cut", "coalesce") if given.get(name) is None]
    return replace(parsed, **{name: getattr(preset, name) for name in names})


def _as_calibrated(parsed: Options, given: Mapping[str, Any]) -> Options:
    """The options with those that a calibrated plan, or a live plan, needs."""
    if isinstance(parsed.plan, LivePlan):
        now = parsed.plan.current()
        cut, coalesce = now.form.cut, now.form.coalesce
        return replace(parsed, cut=cut, coalesce=coalesce, predict_in=now.predict_in)
    plan = load_plan(parsed.plan) if isinstance(parsed.plan, (str, Path)) else _tuned(parsed.plan)
    if plan is None:
        return parsed
    if isinstance(plan, StepPlan):
        needed = {"cut": plan.cut, "coalesce": plan.coalesce}
    elif plan.calibrated is not None:
        names = ("cut", "coalesce", "predict_in")
        needed = {name: getattr(plan.calibrated, name) for name in names}
    else:
        return parsed
    for name, wanted in needed.items():
        if given.get(name, wanted) != wanted:
            raise OptionError(
                f"{name}={given[name]!r}, but {plan.origin[0].lower()}{plan.origin[1:]} was made "
                f"with {wanted!r}. Leave the option out, or make a plan with it."
            )
    return replace(parsed, **needed)
