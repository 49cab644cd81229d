"""A small DiT with inputs that change at every step, and loops that call it.

Its strength gates an attention, its residual is projected before anything reads the latents. Both
are kept from step to step if they count as prompts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from helpers.latte import Moment
from helpers.oracle import Broadcast, Rule

NUM_STEPS = 10
WIDTH, HEADS, TOKENS = 16, 2, 12
RULE = Rule({"full": 2, "cross": 3}, (0.0, 1.0))

Branch = Callable[[str, str, Callable[[], torch.Tensor]], torch.Tensor]


class SteppingDit(nn.Module):
    """Self-attention with a gate, cross-attention, and a residual, twice.

    Args:
        dtype: of the weights.
        breaks: whether Dynamo breaks the forward between the blocks.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, breaks: bool = False) -> None:
        super().__init__()
        self.breaks = breaks
        torch.manual_seed(0)
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.embed, self.project = nn.Linear(8, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.own = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.queries = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.keys = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.branch: Branch = lambda name, kind, compute: compute()
        self.requires_grad_(False).eval().to(dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        strength: torch.Tensor,
        residuals: Any,
    ) -> torch.Tensor:
        """The prediction ``[1, tokens, 4]``, from two residuals ``[1, tokens, width]``."""
        angles = timestep.reshape(-1, 1) * torch.arange(1, 5, device=timestep.device) / 300
        time = self.embed(torch.cat([angles.sin(), angles.cos()], -1).to(hidden_states.dtype))
        given = list(residuals.values()) if isinstance(residuals, dict) else residuals
        x = self.enter(hidden_states)
        x = self._block(0, x, time, encoder_hidden_states, strength)
        x = x + self.project(given[0]).tanh()
        if self.breaks:
            torch._dynamo.graph_break()
        x = self._block(1, x, time, encoder_hidden_states, strength)
        return self.leave(x + self.project(given[1]).tanh())

    def _block(
        self,
        number: int,
        x: torch.Tensor,
        time: torch.Tensor,
        prompt: torch.Tensor,
        strength: torch.Tensor,
    ) -> torch.Tensor:
        def attention() -> torch.Tensor:
            return _attend(*self.own[number](x + time[:, None]).chunk(3, -1))

        after = x + strength * self.branch(f"own {number}", "full", attention)

        def cross() -> torch.Tensor:
            return _attend(self.queries[number](after), *self.keys[number](prompt).chunk(2, -1))

        return after + self.branch(f"cross {number}", "cross", cross)


def _attend(*tensors: torch.Tensor) -> torch.Tensor:
    heads = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in tensors)
    return nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


@dataclass
class Stepping:
    """A denoising loop whose inputs change at every step.

    Attributes:
        texts: step -> seeds of the prompts, one per call.
        strength: (step, call) -> strength.
        residual: (step, call) -> a seed of the residuals.
        is_dict: whether the residuals come as a dict.
        dtype: of the latents and the model.
    """

    texts: Callable[[int], tuple[int, ...]] = lambda step: (1,)
    strength: Callable[[int, int], float] = lambda step, call: 1 - step / 20
    residual: Callable[[int, int], int] = lambda step, call: 0
    is_dict: bool = False
    dtype: torch.dtype = torch.float32
    table: torch.Tensor = field(default_factory=lambda: torch.linspace(990, 90, NUM_STEPS))

    def run(self, call: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Latents at the end. The call gets the step, the number of the call, and the inputs."""
        latents = self._noise(5, TOKENS, 4)
        prompts = {seed: self._noise(seed, 7, WIDTH) for seed in range(1, 30)}
        with torch.no_grad():
            for step, timestep in enumerate(self.table):
                found = [
                    call(step, number, **self._inputs(latents, timestep, step, number), **text)
                    for number, text in enumerate(
                        {"encoder_hidden_states": prompts[seed]} for seed in self.texts(step)
                    )
                ]
                latents = latents - 0.2 * sum(found, torch.zeros_like(latents)) / len(found)
        return latents

    def _inputs(
        self, latents: torch.Tensor, timestep: torch.Tensor, step: int, call: int
    ) -> dict[str, Any]:
        seed = self.residual(step, call)
        residuals = [self._noise(100 + 10 * seed + i, TOKENS, WIDTH) for i in range(2)]
        named = {f"block{i}": residual for i, residual in enumerate(residuals)}
        return {
            "hidden_states": latents,
            "timestep": timestep.expand(1),
            "strength": torch.tensor([self.strength(step, call)], dtype=self.dtype),
            "residuals": named if self.is_dict else residuals,
        }

    def _noise(self, seed: int, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, *shape, generator=generator).to(self.dtype)


class SteppingOracle(Broadcast):
    """The model with branches that compute or reuse by the rule, told where each call belongs.

    Args:
        model: an eager model; it is copied.
        lane: (step, call) -> the lane.
        rule: who reuses when.
    """

    def __init__(
        self, model: SteppingDit, lane: Callable[[int, int], str], rule: Rule = RULE
    ) -> None:
        super().__init__(rule)
        self._model, self._lane = copy.deepcopy(model), lane
        self._model.branch = self.branch

    def __call__(self, step: int, number: int, **inputs: Any) -> torch.Tensor:
        """One call, as ``Stepping`` makes it."""
        timestep = float(inputs["timestep"])
        self.begin(Moment(step, NUM_STEPS, timestep, self._lane(step, number)))
        return self._model(**inputs)
