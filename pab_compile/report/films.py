"""Films: videos and pictures inside a page, side by side."""

from __future__ import annotations

import base64
import mimetypes
import os
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import torch

from pab_compile.errors import PabError

from .animation import animated_png

_LARGEST = 64 * 2**20  # bytes of a file: a page with more does not open well


def films(videos: Mapping[str, Any]) -> Iterator[str]:
    """The videos, each under its name.

    Args:
        videos: name -> the path of a video or picture, or frames: a tensor of shape
            ``[frames, height, width]`` or ``[frames, height, width, 3]``, or one picture
            ``[height, width, 3]``. Floats lie in 0 to 1, integers in 0 to 255.

    Raises:
        PabError: a video is none of these.
    """
    if not videos:
        return
    yield "<h2>Results</h2>"
    shown = "".join(_film(name, video) for name, video in videos.items())
    yield f'<div class="films">{shown}</div>'


def _film(name: str, video: Any) -> str:
    kind, content = _content(name, video)
    data = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    label = escape(name, quote=True)
    if kind.startswith("video/"):
        inside = f'<video src="{data}" autoplay loop muted playsinline controls></video>'
    else:
        inside = f'<img src="{data}" alt="{label}">'
    return f"<figure>{inside}<figcaption>{escape(name)}</figcaption></figure>"


def _content(name: str, video: Any) -> tuple[str, bytes]:
    """The type and the bytes of a video."""
    if isinstance(video, torch.Tensor):
        return "image/png", animated_png(_frames(name, video))
    if not isinstance(video, (str, os.PathLike)):
        raise PabError(
            f"The video {name!r} is a {type(video).__name__}. A page takes the path of a video or "
            "picture, or a tensor of frames: [frames, height, width] or [frames, height, width, 3]."
        )
    path = Path(video)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not path.is_file() or not kind.startswith(("video/", "image/")):
        what = "is no video or picture by its name" if path.is_file() else "does not exist"
        raise PabError(f"The video {name!r}: {path} {what}. Give a file such as video.mp4.")
    if path.stat().st_size > _LARGEST:
        raise PabError(
            f"The video {name!r}: {path} has more than {_LARGEST >> 20} MiB, and a page holds its "
            "videos. Give a smaller file."
        )
    return kind, path.read_bytes()


def _frames(name: str, video: torch.Tensor) -> torch.Tensor:
    """Frames as bytes: ``[frames, height, width, channels]`` of one or three channels."""
    frames = video.detach().cpu()
    if frames.ndim == 3 and frames.shape[-1] == 3:
        frames = frames[None]
    if frames.ndim == 3:
        frames = frames[..., None]
    if frames.ndim != 4 or frames.shape[-1] not in (1, 3) or not frames.numel():
        raise PabError(
            f"The video {name!r} has the shape {list(video.shape)}. Frames have the shape "
            "[frames, height, width] or [frames, height, width, 3]."
        )
    if frames.is_floating_point():
        frames = (frames.float().nan_to_num().clamp(0, 1) * 255).round()
    return frames.clamp(0, 255).to(torch.uint8)
