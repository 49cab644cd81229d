"""Animations: frames as one animated PNG, which every browser shows. No other library is needed.

The format is that of the PNG specification, third edition (W3C 2025), section 11.3.6.
"""

from __future__ import annotations

import struct
import zlib

import torch

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def animated_png(frames: torch.Tensor, per_second: int = 8) -> bytes:
    """Frames as a file; one frame is a picture.

    Args:
        frames: bytes of shape ``[frames, height, width, channels]``, one channel or three.
        per_second: frames per second.
    """
    number, height, width, channels = frames.shape
    colour = 0 if channels == 1 else 2
    parts = [
        _SIGNATURE,
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
    ]
    if number > 1:
        parts.append(_chunk(b"acTL", struct.pack(">II", number, 0)))
    sequence = 0
    for index in range(number):
        if number > 1:
            control = struct.pack(">IIIIIHHBB", sequence, width, height, 0, 0, 1, per_second, 0, 0)
            parts.append(_chunk(b"fcTL", control))
            sequence += 1
        pixels = _compressed(frames[index])
        if index == 0:
            parts.append(_chunk(b"IDAT", pixels))
        else:
            parts.append(_chunk(b"fdAT", struct.pack(">I", sequence) + pixels))
            sequence += 1
    return b"".join([*parts, _chunk(b"IEND", b"")])


def _compressed(frame: torch.Tensor) -> bytes:
    """The rows of a frame, each behind the number of its filter: none."""
    rows = frame.flatten(1)
    return zlib.compress(torch.cat([rows.new_zeros(len(rows), 1), rows], 1).numpy().tobytes(), 9)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
