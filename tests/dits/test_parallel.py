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
import sympy

from dits.build import Denoising, build
from dits.catalogue import CATALOGUE
from helpers.captured import Captured, analysed, captured_module
from helpers.lockstep import Step, check_generations
from pab_compile import Schedule
from pab_compile.forecast.predict import predict
from pab_compile.options import parse_options

SIZES = {"frames": 6, "height": 8, "width": 10}
CONFIGS: dict[str, dict[str, Any]] = {
    "latte": {"num_attention_heads": 4, "cross_attention_dim": 40, "video_length": 6},
    "cogvideox": {"num_attention_heads": 4, "sample_frames": 21},
    "wan": {"num_attention_heads": 4},
    "flux": {"num_attention_heads": 4},
    "hunyuan_video": {"num_attention_heads": 4},
    # Fewer heads than ranks: in rings.
    "cogvideox, two heads": {"num_attention_heads": 2, "sample_frames": 21},
    "wan, two heads": {"num_attention_heads": 2},
}
# Model, axis, number of ranks; the cases of a model share its capture.
CASES = [
    *[("latte", axis, num) for axis, num in (("t", 2), ("t", 3), ("t", 4), ("h", 3), ("w", 4))],
    *[("cogvideox", axis, num) for axis, num in (("t", 2), ("s", 3), ("t", 4))],
    *[("wan", axis, num) for axis, num in (("t", 2), ("w", 2), ("h", 3), ("t", 4), ("s", 4))],
    *[("flux", "s", num) for num in (2, 3, 4)],
    *[("cogvideox, two heads", axis, num) for axis, num in (("s", 3), ("t", 4))],
    *[("wan, two heads", axis, num) for axis, num in (("t", 3), ("h", 3))],
    *[("hunyuan_video", axis, num) for axis, num in (("s", 2), ("t", 3), ("t", 4))],
]


@functools.cache
def model_of(name: str) -> tuple[Captured, list[Step]]:
    """A model, and the inputs of a generation of two lanes that have different prompts."""
    dit = CATALOGUE[name.split(",")[0]]
    dit = replace(dit, config={**dit.config, **CONFIGS[name]})
    sizes = {**SIZES, "width": 8} if name == "latte" else SIZES
    denoising = Denoising(dit, num_steps=5, **sizes)
    other = {"encoder_hidden_states": dit.inputs(**sizes, seed=2)["encoder_hidden_states"]}
    steps = [(denoising.at(step), {**denoising.at(step), **other}) for step in range(5)]
    return captured_module(build(dit), **dit.inputs(**sizes)), steps


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "axis", "num_ranks"),
    [pytest.param(*case, marks=pytest.mark.xdist_group(case[0])) for case in CASES],
)
def test_ranks_generate_what_one_device_does_with_any_reuse(
    name: str, axis: str, num_ranks: int
) -> None:
    model, steps = model_of(name)
    check_generations(model, axis, num_ranks, steps)


@pytest.mark.xdist_group("wan, two heads")
def test_keys_in_a_ring_are_counted_as_often_as_they_are_passed_on() -> None:
    model, _ = model_of("wan, two heads")
    options = parse_options({"ranges": {}, "sequence_parallel": 3, "shard": "t"})
    found = predict(analysed(model), options, 3, Schedule(5))
    keys = 2 * 6 * 4 * 5 * 24 * 4  # rows, frames, rows and columns of tokens, channels, bytes
    assert found.convention_bytes == 5 * 2 * 2 * keys * 2 / 3  # k and v of two sites, twice
    assert found.wire_bytes == found.convention_bytes + sum(
        row.wire_bytes for row in found.rows if row.what == "gather at the end"
    )
    b, t, h, w, n, steps = sympy.symbols("b t h w N steps_full")
    size = {b: 2, t: 6, h: 4, w: 5, n: 3, steps: 5}
    assert float(found.formula.subs(size)) == found.convention_bytes
    assert "runs along rings of 3" in str(found)
