"""The trained models of the examples: loaded as what they are, with plans that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import digits
import pytest
import torch

import pab_compile
import plans

SUMS = {"ranges": "linear3"}
PATCHES = digits.NUM_FRAMES * digits.SIZE**2 // 4
"""Of the Latte; patches of the others are two frames long."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("family", "kinds", "num_mlps", "num_patches", "channels"),
    [
        ("latte", {"spatial": 3, "temporal": 3, "cross": 3}, 6, PATCHES, 128),
        ("joint", {"joint": 4}, 4, PATCHES // 2, 128),
        ("deep", {"joint": 12}, 12, PATCHES // 8, 96),
    ],
)
def test_all_sites_of_a_trained_model_are_found_and_become_one_sum(
    family: str, kinds: dict[str, int], num_mlps: int, num_patches: int, channels: int
) -> None:
    trained = digits.load(digits.find_folder(family))
    with torch.no_grad():
        found = pab_compile.explain(trained.model, options=SUMS, **trained.example_inputs())
    assert found.counts() == kinds
    assert [site.kind for site in found.sites].count("mlp") == num_mlps
    (line,) = [note for note in found.notes if note.startswith("coalesced")]
    size = 2 * num_patches * channels * torch.float32.itemsize  # with guidance
    assert line.startswith(f"coalesced {len(found.sites)} sites, ")
    assert f"cache 1 tensor(s) of {size} bytes" in line


def generate(trained: digits.DigitsModel, options: dict[str, Any]) -> pab_compile.RunStats:
    """Generates one video with a plan, without an inner compiler; what was computed."""
    model = torch.compile(trained.model, backend="pab", options={"inner": "eager", **options})
    digits.generate(trained, torch.tensor([3]), digits.make_noise(1), model=model)
    return pab_compile.stats(model)


@pytest.mark.long
@pytest.mark.parametrize("family", ["latte", "joint"])
def test_the_calibrated_plan_of_a_model_computes_all_sites_at_few_steps(family: str) -> None:
    trained = digits.load(digits.find_folder(family))
    found = generate(trained, plans.plans_of(family)["calibrated"])
    assert found.steps == 30
    (num_computed,) = set(found.computed_steps.values())
    assert 0 < num_computed <= 10


@pytest.mark.long
@pytest.mark.slow
def test_inductor_takes_what_is_predicted_for_what_was_computed() -> None:
    # What the attention of this model yields is a part of a larger tensor: video without prompt.
    trained = digits.load(digits.find_folder("joint"))
    del trained.model.transformer_blocks[1:]  # which are like the first
    options = {"ranges": {"joint": 2}, "predict": 1, "window": (0.0, 1.0)}
    videos = []
    for inner in ("eager", "inductor"):
        model = torch.compile(trained.model, backend="pab", options={"inner": inner, **options})
        noise = digits.make_noise(1)
        videos.append(digits.generate(trained, torch.tensor([3]), noise, model=model, num_steps=6))
        assert pab_compile.stats(model).reused == {"joint": 3}
    torch.testing.assert_close(*videos, rtol=0, atol=1e-4)


@pytest.mark.long
def test_the_calibrated_plan_of_another_model_is_refused() -> None:
    trained = digits.load(digits.find_folder("joint"))
    with pytest.raises(pab_compile.PlanError, match="made for another model"):
        generate(trained, plans.plans_of("latte")["calibrated"])


@pytest.mark.parametrize("family", digits.FAMILIES)
def test_a_saved_model_is_loaded_as_what_it_is(family: str, tmp_path: Path) -> None:
    trained = digits.load(digits.find_folder(family))
    digits.save(tmp_path, trained.model, trained.prompts)
    again = digits.load(tmp_path)
    video, prompts = digits.make_noise(2), trained.prompts[:2]
    timestep = torch.full((2,), 500.0)
    with torch.no_grad():
        ways = [t.family.velocity(t.model, video, timestep, prompts) for t in (trained, again)]
    assert ways[0].shape == video.shape
    assert torch.equal(*ways)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train_digits\.py"):
        digits.load(digits.find_folder(str(tmp_path)))
