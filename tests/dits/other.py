"""Diffusion transformers that make neither pictures nor sound: embeddings, proteins."""

from __future__ import annotations

from typing import Any

import torch

from .draw import Draw, at
from .spec import Dit

_TEXT = 7


def _prior(
    batch: int = 2,
    frames: int = 1,
    height: int = 1,
    width: int = 1,
    text: int = _TEXT,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    del frames, height, width
    draw = Draw(seed, dtype)
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "hidden_states": draw(batch, 12),
        "timestep": at(batch, 500),
        "proj_embedding": draw(batch, 12),
        "encoder_hidden_states": draw(batch, text, 12),
        "attention_mask": mask,
    }


def _protein(
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
    num_residues = height * width
    mask = torch.ones(batch, num_residues, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "bb_ca": draw(batch, num_residues, 3),
        "local_latents": draw(batch, num_residues, 5),
        "bb_ca_time": at(batch, 0.5),
        "local_latents_time": at(batch, 0.5),
        "padding_mask": mask,
        "token_type": torch.zeros(batch, num_residues, dtype=torch.long),
        "conditioning": {
            "is_in_context_conditioning": torch.zeros_like(mask),
            "supports_local_latent": torch.ones_like(mask),
        },
    }


DITS = (
    Dit(
        name="prior",
        cls="PriorTransformer",
        config={"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
        | {"embedding_dim": 12, "num_embeddings": _TEXT, "additional_embeddings": 4},
        inputs=_prior,
        kinds=((r"blocks\.\d+\.attn1$", "text"),),
        modality="other",
        notes="denoises one embedding; a lone token names no axis, so that its attention to the "
        "prompt counts as the prompt's own and is computed at every step",
        options={"axes": {"hidden_states": "b c"}},
    ),
    Dit(
        name="protein",
        cls="RFD4ProteinaTransformer",
        config={"nlayers": 2, "token_dim": 32, "nheads": 2, "dim_cond": 18, "pair_repr_dim": 14}
        | {"latent_dim": 5, "token_type_emb_dim": 6, "t_emb_dim": 16, "xt_pair_dist_dim": 9}
        | {"feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type")}
        | {"feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents")}
        | {"feats_pair_repr": ("xt_bb_ca_pair_dists", "bond_mask"), "tri_mult_c": 10}
        | {"feats_pair_cond": ("time_emb_bb_ca", "time_emb_local_latents")},
        inputs=_protein,
        kinds=((r"layers\.\d+\.mhba\.mha$", "full"),),
        modality="other",
        clock="local_latents_time",
        latents="local_latents",
        notes="two latents with a timestep each; attention is biased by residue pairs",
    ),
)
