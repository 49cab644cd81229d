"""Pyramid Attention Broadcast in plain eager code, told at every call where it is.

It knows nothing of the compiler: transformer blocks of a copy of the model get a forward of their
own that asks ``branch`` for the result of every residual branch. ``Broadcast`` is the paper's rule;
``Oracle`` is a Latte with blocks written after diffusers' ``BasicTransformerBlock``
(ada_norm_single)::

    reuse  <=>  range > 1  and  step % range != 0  and  the step lies inside the window

A reuse takes the output of the last step at which the rule computed. If this lane has none from
that step (it was not called then), it computes.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from diffusers import LatteTransformer3DModel

from helpers.latte import Moment

KINDS = ("spatial", "temporal", "cross", "full", "joint", "mlp")


@dataclass(frozen=True)
class Rule:
    """Who reuses when.

    Attributes:
        ranges: kind -> compute every so many steps.
        window: fractions of the steps (floats, half open) or timestep values (integers, exclusive).
        predict: order of the reuse, or one per kind.
        predict_in: what the outputs are a polynomial of: ``step`` or ``timestep``.
    """

    ranges: Mapping[str, int] = field(
        default_factory=lambda: {"spatial": 2, "temporal": 4, "cross": 6}
    )
    window: tuple[float, float] | tuple[int, int] = (0.15, 0.85)
    predict: int | Mapping[str, int] = 0
    predict_in: str = "step"

    def options(self) -> dict[str, Any]:
        """The same rule as options of the backend."""
        named = {"ranges": self.ranges, "window": self.window, "predict": self.predict}
        return {**named, "predict_in": self.predict_in}

    def reuses(self, kind: str, step: int, moment: Moment) -> bool:
        """Whether a kind reuses at a step with the moment's timestep."""
        low, high = self.window
        if isinstance(low, int):
            inside = low < moment.timestep < high
        else:
            inside = low <= step / moment.num_steps < high
        return inside and step % self.ranges.get(kind, 1) != 0

    def order(self, kind: str) -> int:
        """0 repeats the last output, 1 and 2 extrapolate from the last two and three."""
        return self.predict if isinstance(self.predict, int) else self.predict.get(kind, 0)


@dataclass(frozen=True)
class Event:
    """What one branch did at one call."""

    name: str
    kind: str
    step: int
    lane: str
    reused: tuple[int, ...]
    num_bytes: int


class Broadcast:
    """Computes or reuses the branches of a model by a rule.

    Attributes:
        events: what every branch did at every call.
        keep: what is kept of an output.
    """

    def __init__(self, rule: Rule | None = None, cut: str = "attention") -> None:
        self.events: list[Event] = []
        self.keep: Callable[[torch.Tensor], torch.Tensor] = lambda output: output
        self._rule = rule or Rule()
        self._gate_inside = cut != "attention"
        self._outputs: dict[tuple[str, str], list[tuple[int, torch.Tensor]]] = defaultdict(list)
        self._computed_at: dict[str, int] = {}
        self._timesteps: dict[int, float] = {}
        self._now = Moment(0, 1, 0.0, "")

    def begin(self, moment: Moment) -> None:
        """A call of the model begins. Calls must come in the order of their steps."""
        if moment.step != self._now.step:
            for kind in KINDS:
                if not self._rule.reuses(kind, self._now.step, self._now):
                    self._computed_at[kind] = self._now.step
        self._now = moment
        self._timesteps[moment.step] = moment.timestep

    def gated(
        self, name: str, kind: str, compute: Callable[[], torch.Tensor], gate: torch.Tensor
    ) -> torch.Tensor:
        """A branch that the timestep gates: inside or outside of what is reused."""
        if self._gate_inside:
            return self.branch(name, kind, lambda: gate * compute())
        return gate * self.branch(name, kind, compute)

    def branch(self, name: str, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The result of a branch, computed or reused."""
        now = self._now
        outputs = self._outputs[now.lane, name]
        wanted = self._rule.reuses(kind, now.step, now)
        if wanted and outputs and outputs[-1][0] == self._computed_at.get(kind):
            used = outputs[-self._rule.order(kind) - 1 :]
            steps = tuple(step for step, _ in used)
            at = self._timesteps if self._rule.predict_in == "timestep" else range(now.step + 1)
            result = extrapolate([(at[step], output) for step, output in used], at[now.step])
        else:
            result = compute()
            steps = ()
            if not wanted:
                outputs.append((now.step, self.keep(result)))
        size = result.numel() * result.element_size()
        self.events.append(Event(name, kind, now.step, now.lane, steps, size))
        return result

    def computed(self) -> dict[str, int]:
        """Kind -> computations."""
        return self._count(event.kind for event in self.events if not event.reused)

    def reused(self) -> dict[str, int]:
        """Kind -> reuses."""
        return self._count(event.kind for event in self.events if event.reused)

    def _count(self, kinds: Iterable[str]) -> dict[str, int]:
        counted, occurring = Counter(kinds), {event.kind for event in self.events}
        return {kind: counted[kind] for kind in KINDS if kind in occurring}

    def held_bytes(self) -> Counter[int]:
        """Step -> bytes at its end, if outputs live from their step to their last reuse."""
        last_use: dict[tuple[str, str, int], int] = {}
        for event in self.events:
            for step in event.reused:
                last_use[event.name, event.lane, step] = event.step
        held: Counter[int] = Counter()
        for event in self.events:
            if not event.reused:
                until = last_use.get((event.name, event.lane, event.step), event.step)
                for step in range(event.step, until):
                    held[step] += event.num_bytes
        return held


class Oracle(Broadcast):
    """A copy of a Latte that broadcasts by a rule."""

    def __init__(
        self, model: LatteTransformer3DModel, rule: Rule | None = None, cut: str = "attention"
    ) -> None:
        super().__init__(rule, cut)
        self._model = copy.deepcopy(model)
        for self_kind, blocks in (
            ("spatial", self._model.transformer_blocks),
            ("temporal", self._model.temporal_transformer_blocks),
        ):
            for index, block in enumerate(blocks):
                block.forward = MethodType(self._block(f"{self_kind}.{index}", self_kind), block)

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, moment: Moment
    ) -> torch.Tensor:
        """One call, as a ``latte.Loop`` makes it."""
        self.begin(moment)
        return self._model(
            latents, timestep=timestep, encoder_hidden_states=prompt, return_dict=False
        )[0]

    def _block(self, name: str, kind: str) -> Callable[..., torch.Tensor]:
        def forward(
            block: Any,
            tokens: torch.Tensor,
            attention_mask: None,
            text: torch.Tensor | None,
            text_mask: torch.Tensor | None,
            timestep: torch.Tensor,
            *_: None,
        ) -> torch.Tensor:
            table = block.scale_shift_table[None] + timestep.reshape(len(tokens), 6, -1)
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table.chunk(6, dim=1)

            def attention() -> torch.Tensor:
                return block.attn1(block.norm1(tokens) * (1 + scale) + shift)

            tokens = self.gated(f"{name}.attn1", kind, attention, gate) + tokens
            if block.attn2 is not None:

                def cross() -> torch.Tensor:
                    return block.attn2(tokens, encoder_hidden_states=text, attention_mask=text_mask)

                tokens = self.branch(f"{name}.attn2", "cross", cross) + tokens

            def mlp() -> torch.Tensor:
                return block.ff(block.norm2(tokens) * (1 + mlp_scale) + mlp_shift)

            return self.gated(f"{name}.ff", "mlp", mlp, mlp_gate) + tokens

        return forward


def extrapolate(outputs: list[tuple[float, torch.Tensor]], at: float) -> torch.Tensor:
    """The polynomial through outputs at some positions, at a later one."""
    if len(outputs) == 1:
        return outputs[0][1]
    powers = torch.arange(len(outputs), dtype=torch.float64)[:, None]
    known = torch.tensor([position for position, _ in outputs], dtype=torch.float64)
    weights = torch.linalg.solve((known - at) ** powers, 0.0**powers)  # exact for 1, x, x ** 2
    tensors = torch.stack([tensor for _, tensor in outputs])
    return torch.tensordot(weights[:, 0], tensors.double(), dims=1).to(tensors.dtype)
