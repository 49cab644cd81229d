"""The trained models of the examples: loaded as what they are, with plans that fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import digits
import pytest
import solvers
import torch

import pab_compile
import plans
from benchmarks.frontier.solvers import adams_bashforth
from pab_compile.plans.plan_file import load_plan
from pab_compile.plans.step_plan import StepPlan
from pab_compile.plans.tuned_model import TunedModel

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


@pytest.mark.parametrize("family", ["latte", "joint"])
@pytest.mark.parametrize("cost", plans.TUNED)
def test_the_tuned_plans_of_a_model_are_its_own(family: str, cost: int) -> None:
    plan = load_plan(plans.plans_of(family)[f"tuned-{cost}"]["plan"])
    assert isinstance(plan, StepPlan)
    assert (plan.num_steps, plan.cost) == (30, cost)
    found = TunedModel.of(digits.load(digits.find_folder(family)).model)
    assert plan.model is not None
    assert plan.model.misfit(found) == ""
    assert not plan.model.has_other_weights(found)


@pytest.mark.long
@pytest.mark.parametrize("family", ["latte", "joint"])
@pytest.mark.parametrize("cost", plans.TUNED)
def test_a_tuned_plan_of_a_model_reuses_as_it_says(family: str, cost: int) -> None:
    trained = digits.load(digits.find_folder(family))
    options = plans.plans_of(family)[f"tuned-{cost}"]
    found, plan = generate(trained, options), load_plan(options["plan"])
    assert isinstance(plan, StepPlan)
    assert found.notes == ()
    assert found.reused == {"output": 30 - plan.num_computed}


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


def test_the_tuned_plan_of_another_model_is_refused() -> None:
    trained = digits.load(digits.find_folder("joint"))
    with pytest.raises(pab_compile.PlanError, match="was tuned on the model Latte"):
        generate(trained, plans.plans_of("latte")["tuned-10"])


def test_two_velocities_are_followed_as_the_benchmark_does() -> None:
    def velocity(video: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.tanh(video) * timestep / 500

    noise, levels = digits.make_noise(1), torch.linspace(1, 1 / 7, 7).tolist()
    solver, video = solvers.AdamsBashforth(), noise
    for _ in range(2):  # the second generation begins anew
        solver.set_timesteps(sigmas=levels)
        video = noise
        for t in solver.timesteps:
            video = solver.step(velocity(video, t), t, video).prev_sample
    torch.testing.assert_close(video, adams_bashforth(velocity, noise, 7))


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
