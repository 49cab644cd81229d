"""The fingerprint of a model: what a plan must know of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def model_fingerprint(sites: Sequence[Any], cut: str) -> str:
    """Hash of what a plan must know of a model: its sites, by name, kind and module, and the cut.

    The same at every size of the inputs and for every set of weights.

    Args:
        sites: sites that can be broadcast, in model order.
        cut: the option ``cut``.
    """
    words = [cut, *((site.name, site.kind, site.module) for site in sites)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
