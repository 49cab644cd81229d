"""A tuned plan is used on the model that it was tuned on, wherever the plan is given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT, usual
from helpers.latte import compiled_pab
from pab_compile.errors import PlanError
from pab_compile.plans.tuned_model import TunedModel

pytestmark = pytest.mark.xdist_group("model_fit")
STEPS = 4


def small(depth: int = 1, seed: int = 0) -> SmallDiT:
    torch.manual_seed(seed)
    return SmallDiT(depth).requires_grad_(False)


def plan_of(model: torch.nn.Module | None, path: Path) -> str:
    """A plan that was tuned on a model; an older one names none."""
    content = {"format": "pab_compile.plan/2", "num_steps": STEPS, "cut": "output"}
    content["entries"] = ["C", "C", [-1.0, 2.0], "C"]
    if model is not None:
        content["model"] = TunedModel.of(model).to_json()
    (place := path / "plan.json").write_text(json.dumps(content))
    return str(place)


def generate(model: Callable[..., Any]) -> torch.Tensor:
    x = usual("latents")
    for t in torch.linspace(1000, 250, STEPS):
        x = x - model(x, t.expand(2), usual("prompt")) / STEPS
    return x


def notes_of(model: Any) -> tuple[str, ...]:
    generate(model)
    stats = pab_compile.stats(model)
    assert stats.reused == {"output": 1}
    return stats.notes


def test_the_model_itself_and_older_files_have_no_note(tmp_path: Path) -> None:
    for tuned_on in (small(), None):
        assert notes_of(compiled_pab(small(), plan=plan_of(tuned_on, tmp_path))) == ()


def test_other_weights_run_and_every_generation_says_so(tmp_path: Path) -> None:
    compiled = compiled_pab(small(seed=1), plan=plan_of(small(), tmp_path))
    for _ in range(2):
        (note,) = notes_of(compiled)
        assert "was tuned on other weights of this architecture" in note


def test_a_function_is_not_compared_and_a_note_says_so(tmp_path: Path) -> None:
    model = small()
    options = {"plan": plan_of(model, tmp_path), "inner": "eager"}
    compiled = torch.compile(
        lambda latents, timestep, prompt: model(latents, timestep, prompt),
        backend="pab",
        options=options,
    )
    (note,) = notes_of(compiled)
    assert "could not be compared" in note


WAYS: dict[str, Callable[[SmallDiT, str], Any]] = {
    "option": lambda model, plan: generate(compiled_pab(model, plan=plan)),
    "enable": lambda model, plan: pab_compile.enable(model, plan=plan, inner="eager"),
    "explain": lambda model, plan: pab_compile.explain(
        model, usual("latents"), torch.ones(2), usual("prompt"), options={"plan": plan}
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_another_architecture_is_refused(way: str, tmp_path: Path) -> None:
    model, ran = small(2), []
    model.last.register_forward_hook(lambda *_: ran.append(1))
    with pytest.raises(
        PlanError, match=r"was tuned on the model SmallDiT .* Tune a plan on this model"
    ):
        WAYS[way](model, plan_of(small(), tmp_path))
    assert not ran, "nothing was computed"
    assert model._compiled_call_impl is None


def test_a_handle_refuses_the_plan_of_another_architecture_and_keeps_its_own(
    tmp_path: Path,
) -> None:
    model = small(2)
    handle = pab_compile.enable(model, inner="eager")
    plan = plan_of(small(), tmp_path)
    with pytest.raises(PlanError, match="was tuned on the model SmallDiT"):
        handle.set(plan)
    with pytest.raises(PlanError, match="was tuned on the model SmallDiT"), handle.use(plan):
        pass
    assert handle.plan == "balanced"


def test_a_live_plan_with_other_weights_has_a_note_while_it_holds(tmp_path: Path) -> None:
    model = small(seed=1)
    handle = pab_compile.enable(model, "off", inner="eager")
    handle.set(plan_of(small(), tmp_path))
    (note,) = notes_of(model)
    assert "other weights" in note
    handle.set(plan_of(small(seed=1), tmp_path))
    assert notes_of(model) == ()
