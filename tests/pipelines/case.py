"""A pipeline of diffusers with a tiny transformer, and one generation with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dits.build import build
from dits.catalogue import CATALOGUE
from dits.spec import Dit


@dataclass(frozen=True)
class Case:
    """One way to call a pipeline.

    Attributes:
        name: short and unique.
        model: name of its transformer among the DiTs.
        pipeline: ``pipeline(transformer)``: the pipeline without text encoder and decoder.
        arguments: of the call, without steps, generator and output type.
        calls: calls of the transformer per step.
        config: what the transformer is configured with besides the DiT's own configuration.
        output: attribute of the result that holds the latents.
        generations: how many times the pipeline goes through the schedule.
        in_suite: whether the tests run it. If not, only ``python -m pipelines`` does.
        stepping: inputs of the transformer that change at every step, which it takes until the
            third to learn.
    """

    name: str
    model: str
    pipeline: Callable[[torch.nn.Module], Any]
    arguments: Callable[[], dict[str, Any]]
    calls: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)
    output: str = "frames"
    generations: int = 1
    in_suite: bool = True
    stepping: tuple[str, ...] = ()

    @property
    def dit(self) -> Dit:
        """The description of the transformer."""
        dit = CATALOGUE[self.model]
        return Dit(**{**vars(dit), "config": {**dit.config, **self.config}})

    @property
    def pipeline_name(self) -> str:
        """Class of the pipeline."""
        return type(self.build()).__name__

    def callback(self, end_step: Callable[..., Any]) -> dict[str, Any]:
        """Arguments that make the pipeline say when a step ends."""
        return {"callback_on_step_end": end_step}

    def build(self, seed: int = 0, **parts: Any) -> Any:
        """The pipeline, with random weights of which none is zero."""
        pipe = self.pipeline(build(self.dit, seed), **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def generate(self, pipe: Any, num_steps: int, seed: int = 5, **changes: Any) -> torch.Tensor:
        """Latents of a video or picture."""
        torch.manual_seed(seed)  # some pipelines draw more noise, without the generator
        output = pipe(
            **{**self.arguments(), **changes},
            num_inference_steps=num_steps,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        )
        return getattr(output, self.output)


def noise(*shape: int, seed: int) -> torch.Tensor:
    """Normal numbers that depend on the shape and the seed only."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def embeddings(channels: int, tokens: int = 7, batch: int = 1) -> dict[str, torch.Tensor]:
    """A prompt and a negative prompt."""
    return {
        "prompt_embeds": noise(batch, tokens, channels, seed=3),
        "negative_prompt_embeds": noise(batch, tokens, channels, seed=4),
    }


def masks(tokens: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Masks of prompts whose last tokens are padding."""
    positive, negative = torch.ones(2, 1, tokens, dtype=dtype)
    negative[:, -2:] = 0
    return {"prompt_attention_mask": positive, "negative_prompt_attention_mask": negative}
