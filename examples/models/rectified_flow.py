"""Open-Sora's sampler: rectified flow whose timesteps depend on the size of the video.

After hpcaitech/Open-Sora v1.2 (`opensora/schedulers/rf`): the larger the video, the longer sampling
stays near the noise.
"""

from __future__ import annotations

import itertools
import math

import torch

NUM_TRAIN_TIMESTEPS = 1000


def latent_frames(num_frames: int) -> int:
    """Latent frames that the schedule counts: 5 per 17 frames of video, 1 for an image."""
    return 1 if num_frames == 1 else num_frames // 17 * 5


def timesteps(num_steps: int, height: int, width: int, num_frames: int) -> torch.Tensor:
    """The table of timesteps `[num_steps]`, falling from 1000.

    Args:
        num_steps: how often the model is called.
        height: rows of pixels.
        width: columns of pixels.
        num_frames: frames of the video.
    """
    ratio = math.sqrt(height * width / 512**2) * math.sqrt(latent_frames(num_frames))
    left = [1 - step / num_steps for step in range(num_steps)]
    moved = [ratio * u / (1 + (ratio - 1) * u) for u in left]
    return torch.tensor(moved) * NUM_TRAIN_TIMESTEPS


def step_sizes(table: torch.Tensor) -> list[float]:
    """How far each step goes, as a fraction of the whole way from noise to video."""
    values = [*table.tolist(), 0.0]
    pairs = itertools.pairwise(values)
    return [(now - then) / NUM_TRAIN_TIMESTEPS for now, then in pairs]
