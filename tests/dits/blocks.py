"""Pyramid Attention Broadcast of whole blocks in plain eager code: CogVideoX, Wan and Flux.

Every block of a copy of the model gets a forward of its own, written after diffusers', that asks
for the result of every residual branch, gates included (``oracle.Broadcast``). Where prompt and
video go through one branch together, its result is of both, one after the other. With the cut
``branch`` the result is all that is added, with ``gated`` that of the attention alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch

from helpers.latte import Moment
from helpers.oracle import Broadcast, Rule

from .build import run

Forward = Callable[..., Any]


class BlockOracle(Broadcast):
    """A copy of a model that broadcasts by a rule, with the gates inside of what is reused."""

    def __init__(self, model: torch.nn.Module, rule: Rule, cut: str = "gated") -> None:
        super().__init__(rule, "gated")
        self.whole_branches = cut == "branch"
        self._model = copy.deepcopy(model)
        for path, module in self._model.named_modules():
            make = BLOCKS.get(type(module).__name__)
            if make is not None:
                module.forward = MethodType(make(self, path), module)

    def __call__(self, moment: Moment, **inputs: Any) -> torch.Tensor:
        """The model's first output. Calls must come in the order of their steps."""
        self.begin(moment)
        return run(self._model, **inputs)[0]


def _cogvideox(oracle: BlockOracle, path: str) -> Forward:
    def forward(
        block: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        **_: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = encoder_hidden_states.shape[1]

        def attention() -> torch.Tensor:
            x, y, gate, gate_y = block.norm1(hidden_states, encoder_hidden_states, temb)
            x, y = block.attn1(hidden_states=x, encoder_hidden_states=y)
            return torch.cat([gate_y * y, gate * x], 1)

        joined = torch.cat([encoder_hidden_states, hidden_states], 1)
        after = joined + oracle.branch(f"{path}.attn1", "joint", attention)

        def mlp() -> torch.Tensor:
            x, y, gate, gate_y = block.norm2(after[:, length:], after[:, :length], temb)
            both = block.ff(torch.cat([y, x], 1))
            return torch.cat([gate_y * both[:, :length], gate * both[:, length:]], 1)

        after = after + oracle.branch(f"{path}.ff", "mlp", mlp)
        return after[:, length:], after[:, :length]

    return forward


def _wan(oracle: BlockOracle, path: str) -> Forward:
    def forward(
        block: Any, tokens: torch.Tensor, text: torch.Tensor, temb: torch.Tensor, turn: Any
    ) -> torch.Tensor:
        table = (block.scale_shift_table + temb).chunk(6, dim=1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table

        def attention() -> torch.Tensor:
            return gate * block.attn1(block.norm1(tokens) * (1 + scale) + shift, None, None, turn)

        middle = tokens + oracle.branch(f"{path}.attn1", "full", attention)

        def cross() -> torch.Tensor:
            return block.attn2(block.norm2(middle), text, None, None)

        after = middle + oracle.branch(f"{path}.attn2", "cross", cross)

        def mlp() -> torch.Tensor:
            return mlp_gate * block.ffn(block.norm3(after) * (1 + mlp_scale) + mlp_shift)

        return after + oracle.branch(f"{path}.ffn", "mlp", mlp)

    return forward


def _flux(oracle: BlockOracle, path: str) -> Forward:
    def forward(
        block: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Any,
        **_: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = encoder_hidden_states.shape[1]
        x, *rest = block.norm1(hidden_states, emb=temb)
        gate, shift, scale, mlp_gate = (value[:, None] for value in rest)
        y, *rest = block.norm1_context(encoder_hidden_states, emb=temb)
        gate_y, shift_y, scale_y, mlp_gate_y = (value[:, None] for value in rest)

        def attention() -> torch.Tensor:
            found = block.attn(
                hidden_states=x, encoder_hidden_states=y, image_rotary_emb=image_rotary_emb
            )
            return torch.cat([gate_y * found[1], gate * found[0]], 1)

        both = oracle.branch(f"{path}.attn", "joint", attention)
        text, video = encoder_hidden_states + both[:, :length], hidden_states + both[:, length:]

        def mlp() -> torch.Tensor:
            return mlp_gate * block.ff(block.norm2(video) * (1 + scale) + shift)

        def text_mlp() -> torch.Tensor:
            shifted = block.norm2_context(text) * (1 + scale_y) + shift_y
            return mlp_gate_y * block.ff_context(shifted)

        return (
            text + oracle.branch(f"{path}.ff_context", "mlp", text_mlp),
            video + oracle.branch(f"{path}.ff", "mlp", mlp),
        )

    return forward


def _flux_single(oracle: BlockOracle, path: str) -> Forward:
    """One projection mixes attention and MLP before the gate."""

    def forward(
        block: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        image_rotary_emb: Any,
        **_: None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length = encoder_hidden_states.shape[1]
        joined = torch.cat([encoder_hidden_states, hidden_states], 1)
        x, gate = block.norm(joined, emb=temb)

        def attention() -> torch.Tensor:
            return block.attn(hidden_states=x, image_rotary_emb=image_rotary_emb)

        def projected(attended: torch.Tensor) -> torch.Tensor:
            mixed = torch.cat([attended, block.act_mlp(block.proj_mlp(x))], 2)
            return gate[:, None] * block.proj_out(mixed)

        name, kind = f"{path}.attn", "joint"
        if oracle.whole_branches:
            added = oracle.branch(name, kind, lambda: projected(attention()))
        else:
            added = projected(oracle.branch(name, kind, attention))
        after = joined + added
        return after[:, :length], after[:, length:]

    return forward


BLOCKS: Mapping[str, Callable[[BlockOracle, str], Forward]] = {
    "CogVideoXBlock": _cogvideox,
    "WanTransformerBlock": _wan,
    "FluxTransformerBlock": _flux,
    "FluxSingleTransformerBlock": _flux_single,
}
