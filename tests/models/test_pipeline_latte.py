"""The whole of diffusers' LattePipeline, with tiny random parts: one line turns reuse on."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    LattePipeline,
    PyramidAttentionBroadcastConfig,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

import pab_compile
from helpers.latte import (
    CAPTION_CHANNELS,
    NUM_CHANNELS,
    NUM_FRAMES,
    Moment,
    assert_different,
    assert_same,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule

NUM_STEPS = 50
COMPUTED = {"spatial": 33, "temporal": 27, "cross": 22}
LATTE = Rule({"spatial": 2, "temporal": 3, "cross": 6}, (100, 800))
LETTERS = "abcdefghijklmnopqrstuvwxyz ▁"


def tiny_pipeline() -> LattePipeline:
    """A pipeline whose parts are the real classes, small and with random weights."""
    torch.manual_seed(0)
    tokenizer = T5Tokenizer(
        [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in LETTERS)]
    )
    text_encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=CAPTION_CHANNELS,
            d_kv=4,
            d_ff=16,
            num_layers=1,
            num_heads=2,
        )
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=NUM_CHANNELS,
        norm_num_groups=4,
        sample_size=16,
    )
    pipe = LattePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        transformer=tiny_latte(depth=1, out_channels=2 * NUM_CHANNELS),
        scheduler=DDIMScheduler(timestep_spacing="leading", steps_offset=0, clip_sample=False),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TransformerOf(torch.nn.Module):
    """An oracle in the place of the transformer, told by the pipeline where it is."""

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, oracle: Oracle, pipe: LattePipeline) -> None:
        super().__init__()
        self.config = pipe.transformer.config
        self._call = SimpleNamespace(oracle=oracle, pipe=pipe)

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor]:
        table = self._call.pipe.scheduler.timesteps.tolist()
        value = int(timestep[0])
        moment = Moment(table.index(value), len(table), value, "both")
        return (self._call.oracle(hidden_states, timestep, encoder_hidden_states, moment),)


@pytest.fixture(scope="module")
def pipe() -> LattePipeline:
    return tiny_pipeline()


def generate(
    pipe: LattePipeline, prompt: str, transformer: torch.nn.Module | None = None
) -> torch.Tensor:
    """A video as a tensor ``[1, frames, channels, height, width]``."""
    own = pipe.transformer
    if transformer is not None:
        pipe.transformer = transformer
    try:
        frames = pipe(
            prompt,
            num_inference_steps=NUM_STEPS,
            guidance_scale=20.0,  # so large that reuse shows in the pixels
            video_length=NUM_FRAMES,
            height=16,
            width=16,
            generator=torch.Generator().manual_seed(5),
            clean_caption=False,
            output_type="pt",
        ).frames
    finally:
        pipe.transformer = own
    assert frames.shape == (1, NUM_FRAMES, 3, 16, 16)
    assert frames.isfinite().all()
    return frames


@pytest.mark.long
@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_one_line_on_a_pipeline_gives_what_the_oracle_gives(pipe: LattePipeline, cut: str) -> None:
    model = pipe.transformer
    compiled = torch.compile(
        model, backend="pab", options={"ranges": "latte", "inner": "eager", "cut": cut}
    )
    for prompt in ("a dog", "a dog on the beach", "a dog"):
        oracle = TransformerOf(Oracle(model, LATTE, cut), pipe)
        expected = generate(pipe, prompt, oracle)
        assert_different(expected, generate(pipe, prompt), 1e-4)
        assert_same(generate(pipe, prompt, compiled), expected)
        stats = pab_compile.stats(compiled)
        assert stats.steps == stats.calls == NUM_STEPS
        assert stats.computed_steps == COMPUTED
        assert stats.reused == {kind: NUM_STEPS - count for kind, count in COMPUTED.items()}
        assert stats.notes == ()


def test_one_line_on_a_pipeline_gives_what_the_hooks_of_diffusers_give(pipe: LattePipeline) -> None:
    hooked = copy.deepcopy(pipe.transformer)
    hooked.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            temporal_attention_block_skip_range=3,
            cross_attention_block_skip_range=6,
            spatial_attention_block_identifiers=("^transformer_blocks",),
            temporal_attention_block_identifiers=("^temporal_transformer_blocks",),
            cross_attention_block_identifiers=("^transformer_blocks",),
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    )
    expected = generate(pipe, "a dog", hooked)
    assert_different(expected, generate(pipe, "a dog"), 1e-4)
    in_place = copy.deepcopy(pipe.transformer)
    in_place.compile(backend="pab", options={"ranges": "latte", "inner": "eager"})
    assert_same(generate(pipe, "a dog", in_place), expected)
    assert pab_compile.stats(in_place).computed_steps == COMPUTED
