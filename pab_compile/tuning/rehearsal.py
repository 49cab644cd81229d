"""Rehearsals: generations in which entries replace calls of the model.

The sampler and all other code of the caller run as they are. So nothing needs to be known of them.
A call that computed before, with the same inputs, is not computed again: its outputs are replayed.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pab_compile.compile.call_roles import roles_of_call
from pab_compile.errors import CalibrationError
from pab_compile.passes.graph.number_inputs import sounds_like_time
from pab_compile.plans.guidance import BATCH, FIRST, GuidancePlan
from pab_compile.plans.plan import COMPUTE, Entry
from pab_compile.runtime.cache_entry import combine, minus

from .half_batch import HalfBatches, half_of
from .pairs import Pairs

Generate = Callable[[Any, int], Any]
"""``generate(prompt, num_steps)``: one whole generation. It returns the latents or the picture."""

Leaves = tuple[Any, ...]


class _Stop(BaseException):
    """Ends a generation early. No ``except Exception`` of the caller catches it."""


@dataclass(eq=False)
class Outputs:
    """What the model returned in one generation.

    Attributes:
        found: step and number of the call within the step -> leaves.
        halves: step and half of the batch -> leaves, where one half ran alone.
        spec: how the leaves make what was returned.
    """

    found: dict[tuple[int, int], Leaves] = field(default_factory=dict)
    halves: dict[tuple[int, int], Leaves] = field(default_factory=dict)
    spec: Any = None

    def num_bytes(self) -> int:
        """Bytes of all of them."""
        held = itertools.chain(self.found.values(), self.halves.values())
        tensors = (x for leaves in held for x in leaves)
        return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))

    def until(self, step: int) -> Outputs:
        """Those of the steps up to one."""
        found = {place: leaves for place, leaves in self.found.items() if place[0] <= step}
        halves = {place: leaves for place, leaves in self.halves.items() if place[0] <= step}
        return Outputs(found, halves, self.spec)


@dataclass(eq=False)
class Run:
    """One generation.

    Attributes:
        timesteps: one per step.
        latents: what the first call of each step got.
        result: what ``generate`` returned, in float32; None if the generation was stopped.
        outputs: of the computed calls.
        num_computed: number of calls that computed. Half of a batch counts half.
    """

    timesteps: list[float] = field(default_factory=list)
    latents: list[torch.Tensor] = field(default_factory=list)
    result: torch.Tensor | None = None
    outputs: Outputs = field(default_factory=Outputs)
    num_computed: float = 0


class Rehearsal:
    """Runs generations of one model.

    Args:
        generate: the caller's function. It must do the same at every run of a prompt.
        model: the module that denoises.
        axes: the option ``axes``, which may state the timestep and the latents.

    Attributes:
        num_computed: number of model calls that computed so far. Half of a batch counts half.
        pairs: how the calls of the generations that computed every step carry two prompts.
    """

    def __init__(
        self, generate: Generate, model: torch.nn.Module, axes: Mapping[str, str] | None = None
    ) -> None:
        self._generate = generate
        self._model = model
        self._axes = dict(axes or {})
        plain = getattr(model, "_orig_mod", model)
        self._signature = inspect.signature(plain.forward)
        self.num_computed: float = 0
        self.half_batches = HalfBatches()
        self.pairs = Pairs()
        self._schedules: dict[int, list[float]] = {}

    def run(
        self,
        prompt: Any,
        num_steps: int,
        entries: Sequence[Entry] | None = None,
        known: Outputs | None = None,
        stop: int | None = None,
        guidance: GuidancePlan | None = None,
    ) -> Run:
        """Run one generation.

        Args:
            prompt: for ``generate``.
            num_steps: for ``generate``.
            entries: one per step, each ``COMPUTE`` or weights; None computes every step.
            known: outputs of calls that had the same inputs. New ones are added.
            stop: the step at which the generation ends, once its latents are known.
            guidance: which steps compute one of two prompts only. Of a batch with
                both, half is computed where that gives the same.

        Raises:
            CalibrationError: timestep or latents cannot be told, nothing comparable is returned, or
                the schedule is another one than in earlier runs.
        """
        run = Run(outputs=Outputs() if known is None else known)
        state = _State(self, run, entries, stop, guidance)
        try:
            with torch.no_grad(), self._in_place_of_the_model(state):
                returned = self._generate(prompt, num_steps)
        except _Stop:
            pass
        else:
            run.result = _result_of(returned)
        self.num_computed += run.num_computed
        if not run.timesteps:
            raise CalibrationError(
                f"A generation did not call the {type(self._model).__name__} that is tuned. Pass "
                "the module that generate calls, or the pipeline."
            )
        self._check_schedule(run.timesteps, num_steps, entries is None, stop is not None)
        return run

    def _check_schedule(
        self, timesteps: list[float], num_steps: int, is_full: bool, is_part: bool
    ) -> None:
        """Check that a generation has the schedule of those before it."""
        known = self._schedules.setdefault(num_steps, timesteps)
        known = known[: len(timesteps)] if is_part else known
        if not is_full and timesteps != known:
            raise CalibrationError(
                f"A generation of {num_steps} steps had the timesteps {_shown(timesteps)}, and an "
                f"earlier one {_shown(known)}. tune needs the same schedule at every run: make the "
                "scheduler anew in generate, or set its timesteps there."
            )

    @contextmanager
    def _in_place_of_the_model(self, state: _State) -> Iterator[None]:
        had_own = "forward" in vars(self._model)
        forward = self._model.forward
        self._model.forward = lambda *args, **kwargs: state.call(forward, args, kwargs)  # type: ignore[method-assign]
        try:
            yield
        finally:
            if had_own:
                self._model.forward = forward  # type: ignore[method-assign]
            else:
                del self._model.forward

    def read(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, str, Mapping[str, torch.Tensor]]:
        """The timestep of a call, which tensor the latents are, and all tensors."""
        given = self._signature.bind(*args, **kwargs).arguments
        tensors = dict(_tensors(given))
        roles = roles_of_call(tensors, self._axes)
        if roles is None:
            for name, tensor in tensors.items():
                if sounds_like_time(name) and tensor.ndim > 1:
                    raise CalibrationError(
                        f"The timestep {name} has the shape {list(tensor.shape)}, one number per "
                        "token or frame. tune needs one per call, so it cannot tune this model. "
                        "Presets, and tune with an observation of it, can be used."
                    )
            raise CalibrationError(
                "It is unknown which input of the model is the timestep, and which one are the "
                f"latents. Its tensors are: {', '.join(tensors) or 'none'}. State both, such as "
                'axes={"t": "step", "x": "b c t h w"}.'
            )
        timestep = tensors[roles.clock].reshape(-1)
        if timestep.numel() > 1 and bool((timestep != timestep[0]).any()):
            raise CalibrationError(
                "The rows of a call are at different timesteps, and tune needs one per call."
            )
        return float(timestep[0]), roles.latents, tensors


@dataclass(eq=False)
class _State:
    """One generation while it runs."""

    rehearsal: Rehearsal
    run: Run
    entries: Sequence[Entry] | None
    stop: int | None
    guidance: GuidancePlan | None
    number: int = 0
    given: dict[tuple[int, int], Leaves] = field(default_factory=dict)
    """What was returned at the steps that compute."""

    def call(self, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call of the model."""
        timestep, latents, tensors = self.rehearsal.read(args, kwargs)
        is_new = not self.run.timesteps or timestep != self.run.timesteps[-1]
        self.number = 0 if is_new else self.number + 1
        if is_new:
            self.run.timesteps.append(timestep)
            self.run.latents.append(tensors[latents].detach().clone())
        if self.entries is None:
            self.rehearsal.pairs.see(is_new, latents, tensors)
        step = len(self.run.timesteps) - 1
        if step == self.stop:
            raise _Stop
        leaves = self._leaves(step, forward, args, kwargs)
        return pytree.tree_unflatten(list(map(_kept, leaves)), self.run.outputs.spec)

    def _leaves(self, step: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Leaves:
        """What the call returns, by the plan."""
        entry = COMPUTE if self.entries is None else self.entries[step]
        if isinstance(entry, tuple):
            used = self._last_given(step, len(entry))
            if len(used) == len(entry):
                return _combined(used, entry)
        left_out = self.guidance.weights[step] if self.guidance is not None else None
        if self.guidance is not None and left_out is not None:
            if self.guidance.prompts == BATCH:
                half = self._computed_half(step, forward, args, kwargs)
                leaves = self._with_one_half(half, step, left_out)
            elif self.number == 1:
                leaves = self._answer(self.given[step, 0], step, left_out)
            else:
                leaves = self._computed((step, self.number), forward, args, kwargs)
        else:
            leaves = self._computed((step, self.number), forward, args, kwargs)
        if entry == COMPUTE:
            self.given[step, self.number] = leaves
        return leaves

    def _computed(
        self, place: tuple[int, int], forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Leaves:
        """What the model returns for these inputs."""
        outputs = self.run.outputs
        if place not in outputs.found:
            leaves, outputs.spec = pytree.tree_flatten(forward(*args, **kwargs))
            outputs.found[place] = tuple(map(_kept, leaves))
            self.run.num_computed += 1
            if self.entries is None:
                self.rehearsal.pairs.see_outputs(leaves)
        return outputs.found[place]

    def _computed_half(
        self, step: int, forward: Callable[..., Any], args: Any, kwargs: Any
    ) -> Leaves:
        """What the model returns for the rows of the prompt that computes."""
        halves, place = self.run.outputs.halves, (step, self._which)
        if place not in halves:
            batches, rows = self.rehearsal.half_batches, len(self.run.latents[-1])
            leaves, calls = batches.run(forward, args, kwargs, rows, self._which)
            halves[place] = tuple(map(_kept, leaves))
            self.run.num_computed += calls
        return halves[place]

    def _last_given(self, step: int, count: int) -> list[Leaves]:
        """The last outputs of this call of the step, the oldest first."""
        steps = [s for s in range(step) if (s, self.number) in self.given]
        return [self.given[s, self.number] for s in steps[-count:]]

    def _answer(self, computed: Leaves, step: int, weights: Sequence[float]) -> Leaves:
        """The output of the other prompt: what was computed minus the combined differences."""
        assert self.guidance is not None
        assert self.entries is not None
        sources = self.guidance.sources(step, self.entries)
        terms = [*map(self._difference, sources), computed]
        return _combined(terms, [*(-weight for weight in weights), 1.0])

    def _with_one_half(self, computed: Leaves, step: int, weights: Sequence[float]) -> Leaves:
        """The outputs of a batch of which one half is left out."""
        pairs = zip(computed, self._answer(computed, step, weights), strict=True)
        joined = [(one, other) if self._which == 0 else (other, one) for one, other in pairs]
        return tuple(
            torch.cat(pair) if isinstance(pair[0], torch.Tensor) else pair[0] for pair in joined
        )

    def _difference(self, step: int) -> Leaves:
        """The guidance difference of a step that computed both prompts."""
        assert self.guidance is not None
        if self.guidance.prompts == BATCH:
            computed, other = self._halves(self.given[step, 0])
        else:
            computed, other = self.given[step, 0], self.given[step, 1]
        return tuple(
            minus((a,), (b,))[0] if isinstance(a, torch.Tensor) else a
            for a, b in zip(computed, other, strict=True)
        )

    def _halves(self, leaves: Leaves) -> tuple[Leaves, Leaves]:
        """The half that computes, and the other one."""
        return half_of(leaves, self._which), half_of(leaves, 1 - self._which)

    @property
    def _which(self) -> int:
        assert self.guidance is not None
        return 0 if self.guidance.computes == FIRST else 1


def _shown(timesteps: Sequence[float]) -> str:
    """The first and the last timesteps in words."""
    shown = [f"{timestep:g}" for timestep in timesteps]
    return ", ".join(shown if len(shown) < 8 else [*shown[:3], "...", *shown[-3:]])


def _combined(outputs: Sequence[Leaves], weights: Sequence[float]) -> Leaves:
    """The weighted sum of what the model returned."""
    results: list[Any] = []
    for leaves in zip(*outputs, strict=True):
        if isinstance(leaves[-1], torch.Tensor):
            results += combine([(leaf,) for leaf in leaves], weights)
        else:
            results.append(leaves[-1])
    return tuple(results)


def _kept(leaf: Any) -> Any:
    """A copy, since samplers may write into what the model returned."""
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


def _tensors(given: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a call by the names that the options use."""
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from _tensors({f"{name}[{i}]": each for i, each in enumerate(value)})
        elif isinstance(value, dict):
            inner = value if name == "kwargs" else {f"{name}.{k}": v for k, v in value.items()}
            yield from _tensors(inner)
        elif type(value) in (int, float) and math.isfinite(value):
            yield name, torch.tensor(float(value))


def _result_of(returned: Any) -> torch.Tensor:
    """The first tensor or array of floating point that a generation returned."""
    leaves = pytree.tree_leaves(returned)
    for leaf in leaves:
        tensor = torch.from_numpy(leaf) if type(leaf).__module__ == "numpy" else leaf
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            return tensor.detach().float().clone()
    raise CalibrationError(
        "generate must return the latents, or a picture as a tensor; it returned "
        f"{', '.join(sorted({type(leaf).__name__ for leaf in leaves})) or 'nothing'}. Pipelines of "
        'diffusers return latents with output_type="latent".'
    )
