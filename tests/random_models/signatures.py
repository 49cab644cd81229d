"""Models that take their arguments in several forms."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .forms import NamedPrompt, Prompt
from .model import Model
from .spec import Spec

Tensor = torch.Tensor


class WithKeywords(Model):
    """Names as in diffusers."""

    def forward(
        self,
        hidden_states: Any,
        timestep: Tensor,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        history: Tensor | None = None,
        image_latents: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Any:
        prompt = encoder_hidden_states, encoder_attention_mask, pooled_projections, history
        return self.run(hidden_states, timestep, *prompt, image_latents, guidance)

    def call(self, latents: Any, timestep: Tensor, prompt: Prompt) -> dict[str, Any]:
        """The arguments by keyword; ``args`` are positional ones."""
        return {
            "hidden_states": latents,
            "timestep": timestep,
            "encoder_hidden_states": prompt.text,
            "encoder_attention_mask": prompt.mask,
            "pooled_projections": prompt.pooled,
            "history": prompt.history,
            "image_latents": prompt.first,
            "guidance": prompt.scale,
        }


class WithPositions(Model):
    """Short names, given by position."""

    def forward(
        self,
        x: Any,
        t: Tensor,
        context: Any,
        context_mask: Tensor | None,
        y: Tensor | None,
        past: Tensor | None,
        cond: Tensor | None,
        g: Tensor | None,
    ) -> Any:
        return self.run(x, t, context, context_mask, y, past, cond, g)

    def call(self, latents: Any, timestep: Tensor, prompt: Prompt) -> dict[str, Any]:
        """The arguments by keyword; ``args`` are positional ones."""
        return {"args": (latents, timestep, *vars(prompt).values())}


class WithDict(Model):
    """All that is known of the prompt comes in a dict."""

    def forward(self, sample: Any, timestep: Tensor, conditions: dict[str, Any]) -> Any:
        keys = ("prompt_embeds", "prompt_mask", "pooled_embeds", "history", "first", "scale")
        return self.run(sample, timestep, *(conditions.get(key) for key in keys))

    def call(self, latents: Any, timestep: Tensor, prompt: Prompt) -> dict[str, Any]:
        """The arguments by keyword; ``args`` are positional ones."""
        found = {
            "prompt_embeds": prompt.text,
            "prompt_mask": prompt.mask,
            "pooled_embeds": prompt.pooled,
            "history": prompt.history,
            "first": prompt.first,
            "scale": prompt.scale,
        }
        found = {name: value for name, value in found.items() if value is not None}
        return {"sample": latents, "timestep": timestep, "conditions": found}


class WithObject(Model):
    """All that is known of the prompt comes in an object."""

    def forward(self, latents: Any, sigma: Tensor, prompt: Prompt) -> Any:
        known = prompt.text, prompt.mask, prompt.pooled, prompt.history
        return self.run(latents, sigma, *known, prompt.first, prompt.scale)

    def call(self, latents: Any, timestep: Tensor, prompt: Prompt) -> dict[str, Any]:
        """The arguments by keyword; ``args`` are positional ones."""
        return {"latents": latents, "sigma": timestep, "prompt": prompt}


class WithNamedTuple(Model):
    """All that is known of the prompt comes in a named tuple."""

    def forward(self, x: Any, timesteps: Tensor, cond: NamedPrompt) -> Any:
        return self.run(x, timesteps, *cond)

    def call(self, latents: Any, timestep: Tensor, prompt: Prompt) -> dict[str, Any]:
        """The arguments by keyword; ``args`` are positional ones."""
        cond = NamedPrompt(*vars(prompt).values())
        return {"args": (latents, timestep), "cond": cond}


MODELS = {
    "keywords": WithKeywords,
    "positions": WithPositions,
    "dict": WithDict,
    "dataclass": WithObject,
    "named tuple": WithNamedTuple,
}


def build(spec: Spec) -> Any:
    """The model of a spec with random weights, of which every one matters."""
    torch.manual_seed(spec.seed)
    model = MODELS[spec.call](spec)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= 1.5
    return model.eval().requires_grad_(False).to(model.dtype)
