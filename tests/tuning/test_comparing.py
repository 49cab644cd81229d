"""``compare``: plans measured by real generations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT
from pab_compile import OptionError
from pipelines.catalogue import CASES

EAGER = {"inner": "eager"}


def test_plans_are_measured_and_the_model_is_as_before(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallDiT(1).requires_grad_(False)

    def generate(prompt: int, num_steps: int) -> torch.Tensor:
        latents = torch.randn(2, 4, 3, 2, 5, generator=torch.Generator().manual_seed(prompt))
        for timestep in torch.linspace(1, 1 / num_steps, num_steps):
            latents = latents - model(latents, timestep.expand(2), torch.ones(2, 7, 4)) / num_steps
        return latents

    with torch.no_grad():
        before = generate(1, 9)
    plans = ["linear2", {"ranges": {"spatial": 2}}, "off"]
    found = pab_compile.compare(
        generate,
        [1, 2],
        plans,
        model=model,
        num_steps=9,
        options=EAGER,
        frames=lambda x: x[0, 0],
        measures={"worst": lambda video, other: (video - other).abs().max()},
    )
    all_, one, off = found.plans
    assert all_.reused > one.reused > 0 == off.reused
    assert all_.psnr is not None
    assert one.psnr is not None
    assert all_.psnr < one.psnr < off.psnr == 100
    assert one.measures["worst"] > off.measures["worst"] == 0
    assert "worst" in str(found)
    (note,) = found.notes
    assert note == "No LPIPS: frames have 2 x 5 pixels, and it needs 64 x 64."
    assert " ".join(note.split()) in " ".join(str(found).split())
    assert (found.num_prompts, found.num_steps) == (2, 9)
    assert str(found).splitlines()[0] == found.headline
    assert "linear2" in str(found)
    assert max(map(len, str(found).splitlines())) <= 80
    page = found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page
    assert page.count("<figcaption>") == 4
    assert note in page
    assert '<th class="n">worst</th>' in page
    with torch.no_grad():
        assert torch.equal(generate(1, 9), before)


def test_a_pipeline_needs_no_function() -> None:
    case = CASES["Latte"]
    with pytest.raises(OptionError, match="list of at least one prompt"):
        pab_compile.compare(case.build(), "a cat", ["fast"])
    with pytest.raises(OptionError, match="model="):
        pab_compile.compare(lambda prompt, num_steps: None, ["a cat"], ["fast"])
