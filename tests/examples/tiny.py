"""The examples' models, tiny, called as ``latte.Loop`` calls models, and oracles of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import Any

import torch
from models.layers import along_time, normalise, within_frames

from helpers.latte import ModelCall, Moment
from helpers.oracle import Broadcast, Rule
from models import open_sora, open_sora_plan_1_1, open_sora_plan_1_2, pixart

NAMES = ("open-sora", "open-sora-plan-1.1", "open-sora-plan-1.2")
MASK = torch.tensor([[1, 1, 1, 1, 0]])
SIZE = {
    "fps": torch.tensor([24.0]),
    "height": torch.tensor([64.0]),
    "width": torch.tensor([80.0]),
}
RULES = {
    "open-sora": Rule(),
    "open-sora-plan-1.1": Rule(),
    "open-sora-plan-1.2": Rule({"full": 2, "cross": 3}),
}


def build(name: str, depth: int = 2, num_heads: int = 2) -> torch.nn.Module:
    """A tiny model with random weights."""
    torch.manual_seed(0)
    if name == "open-sora":
        model: torch.nn.Module = open_sora.STDiT3(replace(open_sora.TINY, depth=depth))
    elif name == "open-sora-plan-1.1":
        config = replace(open_sora_plan_1_1.TINY, num_layers=depth)
        model = open_sora_plan_1_1.LatteT2V(config)
    else:
        tiny = open_sora_plan_1_2.TINY
        tiny = replace(tiny, num_layers=depth, num_attention_heads=num_heads)
        model = open_sora_plan_1_2.OpenSoraT2V(tiny)
    return model.eval().requires_grad_(False)


def inputs(
    name: str, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Arguments of one call: prompts padded to one length, one mask for all of them."""
    if name == "open-sora":
        return {"x": latents, "timestep": timestep, "y": prompt[:, None], "mask": MASK, **SIZE}
    return {
        "hidden_states": latents,
        "timestep": timestep,
        "encoder_hidden_states": prompt[:, None],
        "encoder_attention_mask": MASK,
    }


def calls(name: str, model: Callable[..., Any]) -> ModelCall:
    """A model as a loop calls it."""

    def call(
        latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, _: Moment
    ) -> torch.Tensor:
        return model(**inputs(name, latents, timestep, prompt))[:, : latents.shape[1]]

    return call


class Oracle(Broadcast):
    """A copy of a tiny model that broadcasts by a rule."""

    def __init__(self, name: str, model: Any, rule: Rule, cut: str) -> None:
        super().__init__(rule, cut)
        model = copy.deepcopy(model)
        self._call = calls(name, model)
        lists = {
            "open-sora": {"spatial_blocks": "spatial", "temporal_blocks": "temporal"},
            "open-sora-plan-1.1": {
                "transformer_blocks": "spatial",
                "temporal_transformer_blocks": "temporal",
            },
            "open-sora-plan-1.2": {"transformer_blocks": "full"},
        }[name]
        make = self._stdit3 if name == "open-sora" else self._pixart
        for path, kind in lists.items():
            for index, block in enumerate(getattr(model, path)):
                block.forward = MethodType(make(f"{path}.{index}", kind), block)

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, moment: Moment
    ) -> torch.Tensor:
        self.begin(moment)
        return self._call(latents, timestep, prompt, moment)

    def _stdit3(self, name: str, kind: str) -> Callable[..., torch.Tensor]:
        fold = along_time if kind == "temporal" else within_frames

        def forward(
            block: open_sora.Block,
            x: torch.Tensor,
            prompt: torch.Tensor,
            mask: torch.Tensor,
            modulation: torch.Tensor,
            turn: open_sora.Turn,
        ) -> torch.Tensor:
            table = (block.scale_shift_table + modulation).chunk(6, dim=2)
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table
            turned = turn if kind == "temporal" else None

            def attention() -> torch.Tensor:
                y = normalise(x) * (1 + scale) + shift
                return fold(lambda tokens: block.attn(tokens, turned), y)

            after = x + self.gated(f"{name}.attn", kind, attention, gate)

            def cross() -> torch.Tensor:
                return block.cross_attn(after.flatten(1, 2), prompt, mask).view_as(after)

            last = after + self.branch(f"{name}.cross_attn", "cross", cross)

            def mlp() -> torch.Tensor:
                return block.mlp(normalise(last) * (1 + mlp_scale) + mlp_shift)

            return last + self.gated(f"{name}.mlp", "mlp", mlp, mlp_gate)

        return forward

    def _pixart(self, name: str, kind: str) -> Callable[..., torch.Tensor]:
        def forward(
            block: pixart.Block,
            x: torch.Tensor,
            modulation: torch.Tensor,
            prompt: torch.Tensor,
            bias: torch.Tensor | None = None,
            prompt_bias: torch.Tensor | None = None,
            rotate: pixart.Rotation | None = None,
        ) -> torch.Tensor:
            table = (block.scale_shift_table + modulation).unbind(-2)
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table

            def attention() -> torch.Tensor:
                y = normalise(x) * (1 + scale) + shift
                return block.apply_attention(
                    lambda tokens: block.attn1(tokens, bias=bias, rotate=rotate), y
                )

            after = x + self.gated(f"{name}.attn1", kind, attention, gate)
            if block.attn2 is not None:
                attn2, before = block.attn2, after

                def cross() -> torch.Tensor:
                    return attn2(before.flatten(1, -2), prompt, prompt_bias).view_as(before)

                after = after + self.branch(f"{name}.attn2", "cross", cross)

            def mlp() -> torch.Tensor:
                return block.ff(normalise(after) * (1 + mlp_scale) + mlp_shift)

            return after + self.gated(f"{name}.ff", "mlp", mlp, mlp_gate)

        return forward
