"""Ranks generate together what one device generates, whatever is reused.

Sizes that two, three and four ranks share evenly and unevenly: 6 frames of 4 x 5 tokens, 80 tokens
of a picture, 4 heads. One call holds two videos, or both prompts of one; in two lanes there are two
calls per step.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest

from captured import Captured, captured_module
from dits.build import Denoising, build
from dits.catalogue import CATALOGUE
from lockstep import Step, check_generations

SIZES = {"frames": 6, "height": 8, "width": 10}
CONFIGS: dict[str, dict[str, Any]] = {
    "latte": {"num_attention_heads": 4, "cross_attention_dim": 40, "video_length": 6},
    "cogvideox": {"num_attention_heads": 4, "sample_frames": 21},
    "wan": {"num_attention_heads": 4},
    "flux": {"num_attention_heads": 4},
    "hunyuan_video": {"num_attention_heads": 4},
}
# Model, axis, number of ranks; the cases of a model share its capture.
CASES = [
    *[("latte", axis, num) for axis, num in (("t", 2), ("t", 3), ("t", 4), ("h", 3), ("w", 4))],
    *[("cogvideox", axis, num) for axis, num in (("t", 2), ("s", 3), ("t", 4))],
    *[("wan", axis, num) for axis, num in (("t", 2), ("w", 2), ("h", 3), ("t", 4), ("s", 4))],
    *[("flux", "s", num) for num in (2, 3, 4)],
    *[("hunyuan_video", axis, num) for axis, num in (("s", 2), ("t", 3), ("t", 4))],
]


@functools.cache
def model_of(name: str) -> tuple[Captured, list[Step]]:
    """A model, and the inputs of a generation of two lanes that have different prompts."""
    dit = CATALOGUE[name]
    dit = replace(dit, config={**dit.config, **CONFIGS[name]})
    sizes = {**SIZES, "width": 8} if name == "latte" else SIZES
    denoising = Denoising(dit, num_steps=5, **sizes)
    other = {"encoder_hidden_states": dit.inputs(**sizes, seed=2)["encoder_hidden_states"]}
    steps = [(denoising.at(step), {**denoising.at(step), **other}) for step in range(5)]
    return captured_module(build(dit), **dit.inputs(**sizes)), steps


@pytest.mark.parametrize(
    ("name", "axis", "num_ranks"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(case[0])) for case in CASES],
)
def test_ranks_generate_what_one_device_does_with_any_reuse(
    name: str, axis: str, num_ranks: int
) -> None:
    model, steps = model_of(name)
    check_generations(model, axis, num_ranks, steps)
