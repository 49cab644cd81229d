"""Models of sound: one token axis, which may be packed from anything."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at
from .spec import Dit

_TEXT_DIM = 12
_BOTH = ((r"self_attn$|attn1$", "full"), (r"cross_attn$|attn2$", "cross"))


def _ace_step(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, 2 * height * width, 4),
        "timestep": at(batch, 0.5),
        "timestep_r": at(batch, 0.5),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "context_latents": draw(batch, 2 * height * width, 6),
    }


def _longcat(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "hidden_states": draw(batch, height * width, 4),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "encoder_attention_mask": mask,
        "timestep": at(batch, 0.5),
        "latent_cond": draw(batch, height * width, 4),
    }


def _minimax(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames, text
    draw = Draw(seed, dtype)
    return {
        "hidden_states": draw(batch, 4, height * width),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": draw(batch, height * width, _TEXT_DIM),
    }


def _stable(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    angles = draw(height * width + 1, 8)
    return {
        "hidden_states": draw(batch, 4, height * width),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": draw(batch, text, _TEXT_DIM),
        "global_hidden_states": draw(batch, 1, 10),
        "rotary_embedding": (angles.cos(), angles.sin()),
        "return_dict": False,
    }


def _stable3(
    batch: int = 2, height: int = 4, width: int = 6, text: int = 7, seed: int = 0, **rest: Any
) -> dict[str, Any]:
    draw = Draw(seed + 1, rest.get("dtype", torch.float32))
    inputs = _stable(batch, height=height, width=width, text=text, seed=seed, **rest)
    del inputs["rotary_embedding"]
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    return inputs | {
        "global_hidden_states": draw(batch, 10),
        "encoder_attention_mask": mask,
        "local_add_cond": draw(batch, 9, height * width),
    }


def _spectrogram(
    batch: int = 2,
    frames: int = 1,
    height: int = 4,
    width: int = 6,
    text: int = 7,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames
    draw = Draw(seed, dtype)
    notes, context = draw(batch, text, 16), draw(batch, 5, 16)
    mask = torch.ones(batch, text)
    mask[-1, -1] = 0
    return {
        "encodings_and_masks": [(notes, mask), (context, torch.ones(batch, 5))],
        "decoder_input_tokens": draw(batch, height * width, 6),
        "decoder_noise_time": at(batch, 0.5),
    }


DITS = (
    Dit(
        name="ace_step",
        cls="AceStepTransformer1DModel",
        config={"hidden_size": 32, "intermediate_size": 20, "num_hidden_layers": 2}
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        | {"in_channels": 10, "audio_acoustic_hidden_dim": 4, "sliding_window": 5}
        | {"encoder_hidden_size": _TEXT_DIM},
        inputs=_ace_step,
        kinds=_BOTH,
        modality="audio",
        notes="sliding windows by a mask; a second timestep; conditions as channels",
    ),
    Dit(
        name="longcat_audio",
        cls="LongCatAudioDiTTransformer",
        config={"dit_dim": 32, "dit_depth": 2, "dit_heads": 4, "dit_text_dim": _TEXT_DIM}
        | {"latent_dim": 4},
        inputs=_longcat,
        kinds=_BOTH,
        modality="audio",
        notes="convolutions along the text",
    ),
    Dit(
        name="minimax_music3",
        cls="MiniMaxMusic3Transformer1DModel",
        config={"in_channels": 4, "condition_dim": _TEXT_DIM, "num_layers": 2}
        | {"num_attention_heads": 2, "attention_head_dim": 16, "ff_inner_dim": 20}
        | {"rotary_dim": 8, "fourier_embedding_dim": 18},
        inputs=_minimax,
        kinds=((r"blocks\.\d+\.attn$", "full"),),
        modality="audio",
        notes="the timestep is a token; the condition lies beside the latents' channels",
    ),
    Dit(
        name="stable_audio",
        cls="StableAudioDiTModel",
        config={"sample_size": 24, "in_channels": 4, "out_channels": 4, "num_layers": 2}
        | {"attention_head_dim": 16, "num_attention_heads": 4}
        | {"num_key_value_attention_heads": 2, "cross_attention_dim": 32}
        | {"time_proj_dim": 18, "global_states_input_dim": 10}
        | {"cross_attention_input_dim": _TEXT_DIM},
        inputs=_stable,
        kinds=_BOTH,
        modality="audio",
        notes="a token of global conditions leads the sequence",
    ),
    Dit(
        name="stable_audio3",
        cls="StableAudio3DiTModel",
        config={"io_channels": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
        | {"cond_token_dim": _TEXT_DIM, "global_cond_dim": 10, "local_add_cond_dim": 9}
        | {"timestep_features_dim": 18, "num_memory_tokens": 5},
        inputs=_stable3,
        kinds=_BOTH,
        modality="audio",
        notes="the difference of two attentions; learned memory tokens lead the sequence",
    ),
    Dit(
        name="t5_film",
        cls="T5FilmDecoder",
        config={"input_dims": 6, "targets_length": 64, "d_model": 16, "num_layers": 2}
        | {"num_heads": 2, "d_kv": 10, "d_ff": 20},
        inputs=_spectrogram,
        kinds=(
            (r"^decoders\.\d+\.layer\.0\.attention$", "full"),
            (r"^decoders\.\d+\.layer\.1\.attention$", "cross"),
        ),
        modality="audio",
        clock="decoder_noise_time",
        latents="decoder_input_tokens",
        mechanism={"full": "softmax", "cross": "softmax"},
        notes="notes and the sound before them are one source",
    ),
)
