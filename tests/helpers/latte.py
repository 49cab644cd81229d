"""A tiny Latte of diffusers, and denoising loops that call a model as pipelines do.

A loop is a generator: it yields after every step, so that a test can stop it, interleave it with
another one, or change something in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, LatteTransformer3DModel

NUM_CHANNELS = 4
NUM_FRAMES = 4
SAMPLE_SIZE = 8
CAPTION_CHANNELS = 12
NUM_TOKENS = 5

Guidance = Literal["none", "batched", "two calls"]


def tiny_latte(
    depth: int = 2, seed: int = 0, out_channels: int = NUM_CHANNELS
) -> LatteTransformer3DModel:
    """A Latte whose every layer matters: parameters that start at zero are drawn anew."""
    torch.manual_seed(seed)
    model = LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=NUM_CHANNELS,
        out_channels=out_channels,
        num_layers=depth,
        cross_attention_dim=16,
        attention_bias=True,
        sample_size=SAMPLE_SIZE,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=CAPTION_CHANNELS,
        video_length=NUM_FRAMES,
    )
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if "scale_shift_table" in name or not parameter.any():
                parameter.normal_(std=0.5)
    return model.eval().requires_grad_(False)


def draw_latents(seed: int = 1, batch: int = 1, size: int = SAMPLE_SIZE) -> torch.Tensor:
    """Noise of shape ``[batch, channels, frames, size, size]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, NUM_CHANNELS, NUM_FRAMES, size, size, generator=generator)


def draw_prompt(seed: int = 2, batch: int = 1) -> torch.Tensor:
    """Prompt embeddings of shape ``[batch, tokens, channels]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, NUM_TOKENS, CAPTION_CHANNELS, generator=generator)


def ddim_timesteps(num_steps: int) -> torch.Tensor:
    """A scheduler's own table: leading spacing, so 980, 960, ..., 0 for 50 steps."""
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(num_steps)
    return scheduler.timesteps


@dataclass(frozen=True)
class Moment:
    """Where a loop is: what the oracle is told and a compiled model must find out."""

    step: int
    num_steps: int
    timestep: float
    lane: str


ModelCall = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Moment], torch.Tensor]
Update = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def calls_of(model: Callable[..., Any]) -> ModelCall:
    """A model as a loop calls it; it is not told where the loop is."""

    def call(
        latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, _: Moment
    ) -> torch.Tensor:
        return model(latents, timestep=timestep, encoder_hidden_states=prompt, return_dict=False)[0]

    return call


@dataclass
class Loop:
    """One video being denoised with a plain update, ``latents + 0.3 * prediction``.

    Attributes:
        call: the model.
        timesteps: the scheduler's table.
        latents: noise at the start; the current latents while running.
        prompt: the conditional prompt.
        null_prompt: the unconditional prompt.
        guidance: none, both prompts in one batch, or one call per prompt.
        by_value: give a fresh tensor per step instead of a view into the table.
        start: first step that is run, as in image-to-image.
        update: (prediction, timestep, latents) -> next latents, such as a scheduler's ``step``.
        predictions: every prediction so far.
    """

    call: ModelCall
    timesteps: torch.Tensor
    latents: torch.Tensor = field(default_factory=draw_latents)
    prompt: torch.Tensor = field(default_factory=draw_prompt)
    null_prompt: torch.Tensor = field(default_factory=lambda: draw_prompt(3))
    guidance: Guidance = "none"
    by_value: bool = False
    start: int = 0
    update: Update | None = None
    predictions: list[torch.Tensor] = field(default_factory=list)

    def run(self) -> torch.Tensor:
        """Run to the end; all predictions, stacked."""
        for _ in self.steps():
            pass
        return torch.stack(self.predictions)

    def steps(self) -> Iterator[int]:
        """Run step by step."""
        both = torch.cat([self.null_prompt, self.prompt])
        values = self.timesteps.tolist()
        for step, timestep in enumerate(self.timesteps[self.start :]):
            moment = Moment(step, len(values) - self.start, values[self.start + step], "")
            given = timestep.clone() if self.by_value else timestep

            # It must not have ``self``: a method of an object with the schedule may be a sampler.
            def predict(
                latents: torch.Tensor,
                prompt: torch.Tensor,
                lane: str,
                call: ModelCall = self.call,
                given: torch.Tensor = given,
                moment: Moment = moment,
            ) -> torch.Tensor:
                now = replace(moment, lane=lane)
                with torch.no_grad():
                    return call(latents, given.expand(len(latents)), prompt, now)

            if self.guidance == "batched":
                prediction = guided(*predict(torch.cat([self.latents] * 2), both, "both").chunk(2))
            else:
                # Guidance may be switched on in the middle: the line of the prompt stays.
                uncond = None
                if self.guidance == "two calls":
                    uncond = predict(self.latents, self.null_prompt, "uncond")
                prediction = predict(self.latents, self.prompt, "cond")
                if uncond is not None:
                    prediction = guided(uncond, prediction)
                    del uncond  # tests count bytes
            self.predictions.append(prediction)
            if self.update is None:
                self.latents = self.latents + 0.3 * prediction
            else:
                self.latents = self.update(prediction, timestep, self.latents)
            yield step


def guided(uncond: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance with weight 2."""
    return uncond + 2 * (cond - uncond)


def compiled_pab(model: torch.nn.Module, **options: Any) -> Callable[..., Any]:
    """``torch.compile(model, backend="pab")``, with eager pieces unless asked otherwise."""
    return torch.compile(model, backend="pab", options={"inner": "eager", **options})


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest element."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def assert_same(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to rounding."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.2e}"


def assert_different(actual: torch.Tensor, expected: torch.Tensor, at_least: float = 1e-3) -> None:
    """Far apart: a test that compares with either could tell them apart."""
    error = relative_error(actual, expected)
    assert error > at_least, f"relative error only {error:.2e}: the comparison would prove nothing"
