"""Levels: four plans for any model, from the best quality to the highest speed.

A level is a preset that treats all sites alike, MLPs too. ``docs/plans.md`` says what each was
measured to do. Presets of the paper are not levels, but a handle takes them too.
"""

from __future__ import annotations

LEVELS = {"quality": "linear2", "balanced": "linear3", "fast": "linear4", "ultra": "linear5"}
"""Level -> preset, the best quality first."""

DEFAULT, OFF = "balanced", "off"
MIN_STEPS = 8
"""With fewer steps a level reuses nothing: ``docs/plans.md`` says what reuse costs there."""
