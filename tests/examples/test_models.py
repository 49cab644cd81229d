"""The examples' models by themselves: masks, sizes, positions, schedules, real-size graphs."""

from __future__ import annotations

import math
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_same, compiled_pab, draw_latents
from models import layers, open_sora, open_sora_plan_1_1, open_sora_plan_1_2, rectified_flow

from .tiny import SIZE, build

ROOT = Path(__file__).parents[2]
LENGTHS = (3, 5)
NUM_BLOCKS = 2
MASKS = torch.arange(5) < torch.tensor(LENGTHS)[:, None]


def prompts(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 1, 5, 12, generator=torch.Generator().manual_seed(7))


def predict(model: Any, latents: torch.Tensor, timestep: float = 700.0, **inputs: Any) -> Any:
    """One call, with what every model needs."""
    times = torch.tensor([timestep]).expand(len(latents))
    if isinstance(model, open_sora.STDiT3):
        inputs = SIZE | inputs
    return model(latents, times, inputs.pop("prompt", prompts(len(latents))), **inputs)


# -- masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("open-sora", "mask"),
        ("open-sora-plan-1.1", "encoder_attention_mask"),
        ("open-sora-plan-1.2", "encoder_attention_mask"),
    ],
)
def test_a_masked_batch_is_every_prompt_cut_to_its_length(name: str, argument: str) -> None:
    model, latents = build(name), draw_latents(batch=2)
    together = predict(model, latents, **{argument: MASKS})
    for row, length in enumerate(LENGTHS):
        alone = predict(model, latents[row : row + 1], prompt=prompts()[row : row + 1, :, :length])
        assert_same(together[row : row + 1], alone)
    unmasked = predict(model, latents)
    assert not torch.allclose(together[0], unmasked[0], atol=1e-3)


def test_one_mask_holds_for_prompt_and_empty_prompt() -> None:
    model, latents = build("open-sora"), draw_latents(batch=2)
    one = predict(model, latents, mask=MASKS[:1])
    assert torch.equal(one, predict(model, latents, mask=MASKS[:1].repeat(2, 1)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 4), r"mask has shape \(2, 4\), but the prompt has 5 tokens.*shape \(2, 5\)"),
        ((3, 5), "3 rows, which cannot be repeated to a batch of 2"),
        ((5,), r"mask has shape \(5,\)"),
        ((2, 2, 5), r"mask has shape \(2, 2, 5\)"),
    ],
)
def test_a_prompt_mask_of_the_wrong_shape_is_refused(
    shape: tuple[int, ...], words: str, compiled: bool
) -> None:
    model: Any = build("open-sora")
    called = compiled_pab(model) if compiled else model
    with torch.no_grad(), pytest.raises(ValueError, match=words):
        called(
            draw_latents(batch=2),
            torch.tensor([700.0]).expand(2),
            prompts(),
            torch.ones(shape),
            **SIZE,
        )


def test_video_masks_hide_padding_from_the_video() -> None:
    for name in ("open-sora-plan-1.1", "open-sora-plan-1.2"):
        model, latents = build(name), draw_latents()
        wide = torch.nn.functional.pad(latents, (0, 4), value=3.0)
        mask = torch.ones(1, 4, 8, 12)
        mask[..., 8:] = 0
        stretched = predict(model, wide, attention_mask=mask)[..., :8]
        others = torch.nn.functional.pad(latents, (0, 4), value=-5.0)
        assert_same(stretched, predict(model, others, attention_mask=mask)[..., :8])
        assert not torch.allclose(stretched, predict(model, others)[..., :8], atol=1e-3)
    with pytest.raises(ValueError, match=r"video mask has shape .* shape \(1, 4, 8, 12\)"):
        predict(model, wide, attention_mask=mask[..., :8])


def test_given_frames_are_modulated_as_at_timestep_zero() -> None:
    model, latents = build("open-sora"), draw_latents()
    every, none = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 4, dtype=torch.bool)
    assert torch.equal(predict(model, latents, x_mask=every), predict(model, latents))
    assert torch.equal(predict(model, latents, x_mask=none), predict(model, latents, 0.0))


# -- sizes and positions -----------------------------------------------------------------------


def test_sizes_that_patches_do_not_divide_are_padded_with_zeros() -> None:
    model, latents = build("open-sora"), draw_latents()[..., :7, :5]
    padded = torch.nn.functional.pad(latents, (0, 1, 0, 1))
    found = predict(model, latents)
    assert found.shape == (1, 8, 4, 7, 5)
    assert torch.equal(found, predict(model, padded)[..., :7, :5])


def test_positions_of_columns_come_first_and_are_scaled_by_the_resolution() -> None:
    model: Any = build("open-sora")
    table = model.positions((1, 2, 8), torch.tensor([256.0]), torch.tensor([1024.0]))
    assert table.shape == (16, 16)
    row, column = 1, 5
    scaled = [column * 4 / 8, row * 4 / 2]  # the side of a square as large is 4; 512 is scale 1
    expected = [
        function(at / 10000 ** (i / 4))
        for at in scaled
        for function in (math.sin, math.cos)
        for i in range(4)
    ]
    assert table[row * 8 + column].tolist() == pytest.approx(expected, abs=1e-6)


def test_positions_of_plan_1_1_are_those_of_training() -> None:
    config = open_sora_plan_1_1.LatteT2VConfig(
        num_layers=0, num_attention_heads=1, attention_head_dim=8, video_length=56
    )
    model = open_sora_plan_1_1.LatteT2V(config)
    places = model.places(16, 64, torch.device("cpu"))  # training: 32 rows and columns
    at = places[3 * 64 + 10].tolist()
    expected = [f(x / 100**i) for x in (5.0, 6.0) for f in (math.sin, math.cos) for i in range(2)]
    assert at == pytest.approx(expected, abs=1e-6)
    moments = model.moments(4, torch.device("cpu"))[2, 0].tolist()  # 56 frames: a third apart
    expected = [f(2 / 3 / 10 ** (i)) for f in (math.sin, math.cos) for i in range(4)]
    assert moments == pytest.approx(expected, abs=1e-6)


def test_time_rotates_neighbouring_channels() -> None:
    rope = open_sora.RotaryEmbedding(4)
    turned = open_sora.rotate(torch.tensor([1.0, 0, 0, 1.0]).expand(1, 1, 3, 4), rope(3))
    two, slow = 2.0, 2.0 / 100
    expected = [math.cos(two), math.sin(two), -math.sin(slow), math.cos(slow)]
    assert turned[0, 0, 2].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_third_of_the_channels_turns_with_each_axis() -> None:
    config = open_sora_plan_1_2.OpenSoraT2VConfig(
        num_layers=0, num_attention_heads=1, attention_head_dim=12, interpolation_scale=(1, 2, 4)
    )
    model = open_sora_plan_1_2.OpenSoraT2V(config)
    angles = model.angles((2, 3, 5), torch.device("cpu"))
    assert angles.shape == (30, 3, 2)
    assert angles[1 * 15 + 2 * 5 + 3].flatten().tolist() == pytest.approx(
        [1, 1 / 100, 2 / 2, 1 / 100, 3 / 4, 0.75 / 100]
    )
    x = torch.tensor([1.0, 0, 0, 0, *[0.0] * 8]).expand(1, 1, 30, 12)
    turned = open_sora_plan_1_2.rotate(x, angles.cos(), angles.sin())[0, 0, 15]
    assert turned[:4].tolist() == pytest.approx([math.cos(1), 0, math.sin(1), 0], abs=1e-6)


def test_scalars_are_embedded_cosines_first() -> None:
    found = layers.embed_scalars(torch.tensor([3.0]), dim=4)[0].tolist()
    assert found == pytest.approx([math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)])


# -- schedule ----------------------------------------------------------------------------------


def test_timesteps_of_two_seconds_at_480p_are_the_published_ones() -> None:
    table = rectified_flow.timesteps(30, height=480, width=854, num_frames=51)
    assert table.bfloat16().int().tolist() == [
        *(1000, 992, 984, 976, 968, 960, 952, 940, 932, 920, 908, 892, 880, 864, 848),
        *(828, 808, 788, 764, 736, 708, 676, 636, 596, 548, 492, 426, 350, 258, 143),
    ]
    steps = rectified_flow.step_sizes(table)
    assert sum(steps) == pytest.approx(1)
    assert steps == sorted(steps)


def test_images_of_512_pixels_have_evenly_spaced_timesteps() -> None:
    table = rectified_flow.timesteps(4, height=512, width=512, num_frames=1)
    assert table.tolist() == pytest.approx([1000, 750, 500, 250])
    assert rectified_flow.step_sizes(table) == pytest.approx([0.25] * 4)


# -- examples and real sizes -------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(
    ("script", "arguments", "lines"),
    [
        (
            "open_sora.py",
            [],
            [
                "spatial     21   by the rule 21, published 21",
                "temporal    17   by the rule 17, published 17",
                "cross       16   by the rule 16, published 16",
                "5 patterns (spatial/temporal/cross): --- C-- C-C CC- CCC",
            ],
        ),
        ("open_sora_plan.py", ["--version", "1.1"], ["159 calls of the model"]),
        ("open_sora_plan.py", ["--version", "1.2"], ["100 calls of the model"]),
        (
            "latte.py",
            [],
            [
                "spatial     33   by the rule 33, published 33",
                "temporal    27   by the rule 27, published 27",
                "cross       22   by the rule 22, published 22",
            ],
        ),
    ],
)
def test_examples_compute_what_the_reference_computes(
    script: str, arguments: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(ROOT / "examples" / script))["main"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for line in (*lines, "as the reference"):
        assert line in printed
    assert "note:" not in printed


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def at_real_size(
    model: type[torch.nn.Module], config: Any, preset: str, **inputs: torch.Tensor
) -> pab_compile.Explanation:
    """Explain two blocks of a model of the published size: the blocks are alike.

    ``test_public_api`` explains a quarter of Latte in the same way.
    """
    (depth,) = (name for name in ("depth", "num_layers") if hasattr(config, name))
    with torch.device("meta"):
        described = model(replace(config, **{depth: NUM_BLOCKS})).to(torch.bfloat16).eval()
    options = {"ranges": preset, "cut": "gated"}
    return pab_compile.explain(described, options=options, **inputs)


@pytest.mark.long
def test_open_sora_of_two_seconds_at_480p() -> None:
    found = at_real_size(
        open_sora.STDiT3,
        open_sora.XL_2,
        "open-sora",
        x=empty(2, 4, 15, 60, 106),
        timestep=empty(1).expand(2),
        y=empty(2, 1, 300, 4096),
        mask=empty(1, 300, dtype=torch.int64),
        fps=empty(1),
        height=empty(1),
        width=empty(1),
    )
    assert found.counts() == {"spatial": 2, "temporal": 2, "cross": 4}
    cached = [site.cache_bytes for site in found.sites if site.kind != "mlp"]
    assert cached == [2 * 15 * 1590 * 1152 * 2] * 8
    assert open_sora.XL_2.depth == 28
    assert round(sum(cached) / NUM_BLOCKS * 28 / 2**30, 2) == 11.46


@pytest.mark.long
def test_open_sora_plan_1_1_of_65_frames_at_512() -> None:
    found = at_real_size(
        open_sora_plan_1_1.LatteT2V,
        open_sora_plan_1_1.V65X512X512,
        "open-sora-plan",
        hidden_states=empty(2, 4, 17, 64, 64),
        timestep=empty(1, dtype=torch.int64).expand(2),
        encoder_hidden_states=empty(2, 1, 300, 4096),
        attention_mask=empty(2, 17, 64, 64),
    )
    assert open_sora_plan_1_1.V65X512X512.num_layers == 28
    assert found.counts() == {"spatial": 2, "temporal": 2, "cross": 2}
    cached = [site.cache_bytes for site in found.sites if site.kind != "mlp"]
    assert cached == [2 * 17 * 1024 * 1152 * 2] * 6


@pytest.mark.long
def test_open_sora_plan_1_2_of_93_frames_at_480p() -> None:
    found = at_real_size(
        open_sora_plan_1_2.OpenSoraT2V,
        open_sora_plan_1_2.V480P,
        "open-sora-plan",
        hidden_states=empty(2, 4, 24, 60, 80),
        timestep=empty(1).expand(2),
        encoder_hidden_states=empty(2, 1, 512, 4096),
        attention_mask=empty(2, 24, 60, 80),
        encoder_attention_mask=empty(2, 1, 512),
    )
    assert open_sora_plan_1_2.V480P.num_layers == 32
    assert found.counts() == {"full": 2, "cross": 2}
    cached = [site.cache_bytes for site in found.sites if site.kind != "mlp"]
    assert cached == [2 * 24 * 1200 * 2304 * 2] * 4
