"""Draws videos side by side, with labels, and writes them as GIF and MP4."""

from __future__ import annotations

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

BLOCK = 16  # H.264 wants sides that are multiples of this
BACKGROUND, INK = 24, 235


def side_by_side(columns: dict[str, torch.Tensor], rows: list[str], zoom: int = 5) -> np.ndarray:
    """Lays videos out in a labelled grid.

    Args:
        columns: label, of one or more lines -> videos `[n, 1, frames, height, width]` between -1
            and 1.
        rows: the n labels of the rows.
        zoom: size of a video's pixel in the picture; neighbours are not blended.

    Returns:
        Frames `[frames, height, width]` of 8-bit grey, with sides that are multiples of 16.
    """
    videos = [((video[:, 0] + 1) * 127.5).round().byte().numpy() for video in columns.values()]
    num_videos, num_frames, height, width = videos[0].shape
    font = ImageFont.load_default(size=14)
    lines = [line for label in columns for line in label.split("\n")]
    gap, left = 6, 26
    top = 8 + 18 * max(len(label.split("\n")) for label in columns)
    step = max(width * zoom, int(max(font.getlength(line) for line in lines))) + 2 * gap
    total_width = -(-(left + step * len(columns)) // BLOCK) * BLOCK
    total_height = -(-(top + (height * zoom + gap) * num_videos) // BLOCK) * BLOCK
    page = Image.new("L", (total_width, total_height), BACKGROUND)
    draw = ImageDraw.Draw(page)
    for column, label in enumerate(columns):
        middle = left + column * step + step // 2
        draw.text((middle, top // 2), label, fill=INK, font=font, anchor="mm", align="center")
    for row, label in enumerate(rows):
        middle = top + row * (height * zoom + gap) + height * zoom // 2
        draw.text((left // 2, middle), label, fill=INK, font=font, anchor="mm")
    frames = np.repeat(np.asarray(page)[None], num_frames, axis=0)
    for column, video in enumerate(videos):
        x = left + column * step + (step - width * zoom) // 2
        for row in range(num_videos):
            y = top + row * (height * zoom + gap)
            picture = video[row].repeat(zoom, axis=1).repeat(zoom, axis=2)
            frames[:, y : y + height * zoom, x : x + width * zoom] = picture
    return frames


def write_gif(path: Path, frames: np.ndarray, frames_per_second: float = 6.0) -> None:
    """Writes an endless GIF."""
    iio.imwrite(path, frames, extension=".gif", duration=1000 / frames_per_second, loop=0)


def write_mp4(path: Path, frames: np.ndarray, frames_per_second: int = 6, repeats: int = 6) -> None:
    """Writes an H.264 film that plays the frames `repeats` times."""
    colour = np.repeat(np.concatenate([frames] * repeats)[..., None], 3, axis=-1)
    iio.imwrite(path, colour, extension=".mp4", fps=frames_per_second, codec="libx264")
