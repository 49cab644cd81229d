"""Notes on levels: which elements of a timestep keep a call from reusing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from .levels import Level, Pattern
from .stats import GenerationRecord

_APART = (
    ": they are at different timesteps and move at different times, so no step is common to all "
    "of them and this generation was computed; if they may reuse together, state the step: "
    "pab_compile.step(index, num_steps)"
)
_MAX_NAMED = 8  # ranges of elements, or rows


def note_levels(
    level: Level, latents: torch.Tensor, record: GenerationRecord, goes_on: bool
) -> None:
    """Note why a call computes, if its timestep is the reason.

    Args:
        level: what the timestep says.
        latents: what is denoised.
        record: of the generation.
        goes_on: whether the call is behind the first step of the generation.
    """
    if level.value is None:
        if not any(note.endswith(_APART) for note in record.notes):
            record.note(where(level.pattern, latents) + _APART)
    elif goes_on and level.before is not None:
        now, before = (where(pattern, latents) for pattern in (level.pattern, level.before))
        record.note(
            "other elements of the timestep stand still than before, so what was computed before "
            f"was not reused: {now}; before: {before}"
        )


def where(pattern: Pattern, latents: torch.Tensor) -> str:
    """Which elements are at which levels: ``frames 0-4 at 0, 5-8 at 312``.

    Args:
        pattern: of the timestep.
        latents: what is denoised. It shows what the elements are.
    """
    levels, num_rows = pattern.levels, pattern.shape[0]
    width = len(levels) // num_rows
    rows = [tuple(levels[start : start + width]) for start in range(0, len(levels), width)]
    if width == 1:
        return f"{'rows' if num_rows == latents.shape[0] else 'entries'} {_ranges(levels)}"
    unit = "frames" if latents.ndim > 3 and width in latents.shape[1:3] else "tokens"
    if len(set(rows)) == 1:
        return f"{unit} {_ranges(rows[0])}"
    named = [f"row {i}: {unit} {_ranges(row)}" for i, row in enumerate(rows[:_MAX_NAMED])]
    return "; ".join([*named, *(["..."] if len(rows) > _MAX_NAMED else [])])


def _ranges(levels: Sequence[float | None]) -> str:
    """Ranges of equal elements."""
    parts, start = [], 0
    for level, group in itertools.groupby(levels):
        end = start + len(list(group))
        place = f"{start}" if end == start + 1 else f"{start}-{end - 1}"
        parts.append(f"{place} {'moving' if level is None else f'at {level:g}'}")
        start = end
    return ", ".join([*parts[:_MAX_NAMED], *(["..."] if len(parts) > _MAX_NAMED else [])])
