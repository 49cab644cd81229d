"""The examples' modules that benchmarks use; examples are scripts in a folder, not a package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import digits
import solvers

import plans

__all__ = ["digits", "plans", "solvers"]
