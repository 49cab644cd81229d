"""Measures: how near a result is to that without reuse, by functions of the user, and LPIPS."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch

from pab_compile.errors import OptionError
from pab_compile.report.compare_page import MEASURED

Measure = Callable[[Any, Any], float]
"""``measure(result, reference)`` of two videos, as ``frames`` gives them."""
LPIPS = "LPIPS"
_LEAST = 64  # rows and columns: the network halves them five times
_AT_ONCE = 16  # frames


def checked_measures(measures: Mapping[str, Any] | None) -> dict[str, Measure]:
    """The measures of the user.

    Raises:
        OptionError: they are no functions with names of their own.
    """
    if measures is not None and not isinstance(measures, Mapping):
        raise OptionError(
            f"measures={measures!r} is no mapping. Give functions of two videos by their names: "
            "measures={'MSE': lambda result, reference: ...}."
        )
    for name, measure in (measures or {}).items():
        if not isinstance(name, str) or not name or name in MEASURED:
            raise OptionError(
                f"measures: {name!r} is no name for a column of its own. Taken are "
                f"{', '.join(MEASURED)}."
            )
        if not callable(measure):
            raise OptionError(f"measures: {name!r} is {measure!r}, and no function of two videos.")
    return dict(measures or {})


def scores(measures: Mapping[str, Measure], pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    """The mean of every measure over the prompts.

    Args:
        measures: by their names.
        pairs: a result with a plan, and that without reuse, of each prompt.

    Raises:
        OptionError: a measure returns no number.
    """
    return {
        name: statistics.fmean(_number(name, measure(*pair)) for pair in pairs)
        for name, measure in measures.items()
    }


def _number(name: str, found: Any) -> float:
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"The measure {name!r} returned {type(found).__name__}. It returns one number for two "
            "videos."
        ) from error


def lpips_for(video: Any) -> tuple[Measure | None, str]:
    """LPIPS for videos such as this one. ``None`` stands for results that are no frames.

    It needs torchmetrics, torchvision, and the weights of AlexNet where torch keeps downloads.
    Nothing is downloaded.

    Returns:
        The measure, or None and why there is none.
    """
    why = _why_no_frames(video) or _why_missing()
    return (None, f"No {LPIPS}: {why}") if why else (_lpips(), "")


def _why_no_frames(video: Any) -> str:
    is_tensor = isinstance(video, torch.Tensor)
    if not is_tensor or not (video.ndim == 3 or (video.ndim == 4 and video.shape[-1] in (1, 3))):
        return "results are no frames. Let frames= (frames() in a file) return a tensor of them."
    rows, columns = _as_pictures(video[:1] if video.ndim == 4 else video).shape[-2:]
    if min(rows, columns) < _LEAST:
        return f"frames have {rows} x {columns} pixels, and it needs {_LEAST} x {_LEAST}."
    return ""


def _why_missing() -> str:
    missing = [name for name in ("torchmetrics", "torchvision") if find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        return f"{names} {'are' if len(missing) > 1 else 'is'} not installed: pip install " + (
            " ".join(missing)
        )
    try:
        from torchvision.models import AlexNet_Weights  # pyright: ignore
    except (ImportError, RuntimeError) as error:
        return f"torchvision cannot be imported: {error}"
    url: str = AlexNet_Weights.IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    return "" if file.is_file() else f"there are no weights of AlexNet. Download {url} to {file}."


def _lpips() -> Measure:
    from torchmetrics.image.lpip import (  # pyright: ignore
        LearnedPerceptualImagePatchSimilarity,
    )

    network: Any = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def measure(result: Any, reference: Any) -> float:
        first, second = _as_pictures(result), _as_pictures(reference)
        parts = zip(first.split(_AT_ONCE), second.split(_AT_ONCE), strict=True)
        with torch.no_grad():
            found = [float(network(a, b)) * len(a) for a, b in parts]
        return sum(found) / len(first)

    return measure


def _as_pictures(video: torch.Tensor) -> torch.Tensor:
    """Frames as ``[frames, 3, height, width]``, from 0 to 1."""
    video = video.detach().cpu()
    video = video[None] if video.ndim == 3 and video.shape[-1] == 3 else video
    video = video if video.ndim == 4 else video[..., None]
    scaled = video.float() if video.is_floating_point() else video.float() / 255
    pictures = cast("torch.Tensor", scaled.nan_to_num().clamp(0, 1).movedim(-1, 1))
    return pictures.expand(-1, 3, -1, -1)
