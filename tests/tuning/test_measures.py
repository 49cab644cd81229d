"""Further measures of ``compare``: those of the user, and LPIPS where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pab_compile import OptionError
from pab_compile.tuning import measures
from pab_compile.tuning.measures import checked_measures, lpips_for, scores

FRAMES = torch.rand(20, 64, 65, 3, generator=torch.Generator().manual_seed(0))


class Network:
    """Stands for the network of torchmetrics: the mean difference of pictures."""

    def __init__(self, net_type: str, normalize: bool) -> None:
        assert (net_type, normalize) == ("alex", True)

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        assert first.shape[1] == 3
        assert 0 <= float(first.min()) <= float(first.max()) <= 1
        return (first - second).abs().mean()


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchmetrics and torchvision as far as they are used; the file that weights would be in."""
    url = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="https://host/alexnet.pth"))
    contents: dict[str, dict[str, Any]] = {
        "torchmetrics": {},
        "torchmetrics.image": {},
        "torchmetrics.image.lpip": {"LearnedPerceptualImagePatchSimilarity": Network},
        "torchvision": {},
        "torchvision.models": {"AlexNet_Weights": url},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(measures, "find_spec", lambda name: sys.modules.get(name))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints" / "alexnet.pth"


def test_lpips_is_the_mean_over_all_frames_where_weights_are_there(weights: Path) -> None:
    weights.touch()
    measure, why = lpips_for(FRAMES)
    assert measure is not None
    assert why == ""
    other = torch.cat([FRAMES[:19], 1 - FRAMES[19:]])
    expected = float((FRAMES - other).abs().mean())
    assert measure(other, FRAMES) == pytest.approx(expected)
    grey = (FRAMES[..., 0] * 255).round().to(torch.uint8)
    assert measure(grey, grey) == 0
    assert measure(grey[:1], 255 - grey[:1]) > 0


def test_what_lpips_lacks_is_said(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [lpips_for(one) for one in (None, torch.rand(1, 4, 64, 64), FRAMES[:, :9], FRAMES)]
    assert all(measure is None for measure, _ in said)
    latents, nothing, small, missing = (why for _, why in said)
    assert latents == nothing
    assert "results are no frames. Let frames=" in nothing
    assert "frames have 9 x 65 pixels, and it needs 64 x 64" in small
    assert f"no weights of AlexNet. Download https://host/alexnet.pth to {weights}" in missing
    monkeypatch.delitem(sys.modules, "torchmetrics")
    assert lpips_for(FRAMES)[1].endswith("torchmetrics is not installed: pip install torchmetrics")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([len], "is no mapping. Give functions of two videos by their names"),
        ({"SSIM": len}, "'SSIM' is no name for a column of its own"),
        ({3: len}, "3 is no name for a column"),
        ({"MSE": 3}, "'MSE' is 3, and no function of two videos"),
    ],
)
def test_what_is_no_measure_is_refused(given: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        checked_measures(given)


def test_a_measure_returns_a_number() -> None:
    assert scores({"sum": lambda a, b: a + b}, [(1, 2), (3, 4)]) == {"sum": 5}
    with pytest.raises(OptionError, match=r"'text' returned str\. It returns one number"):
        scores({"text": lambda a, b: "alike"}, [(1, 2)])
    with pytest.raises(OptionError, match="returned Tensor"):
        scores({"several": lambda a, b: torch.ones(2)}, [(1, 2)])
