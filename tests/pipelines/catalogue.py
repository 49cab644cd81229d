"""The pipelines that are run."""

from __future__ import annotations

from .from_pictures import FROM_PICTURES
from .from_prompts import FROM_PROMPTS

CASES = {case.name: case for case in (*FROM_PROMPTS, *FROM_PICTURES)}
