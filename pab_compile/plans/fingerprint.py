"""The fingerprint of a model: a hash of everything that a plan refers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any


def model_fingerprint(sites: Sequence[Any], cut: str) -> str:
    """Hash of the names, kinds and modules of the sites, and of the cut.

    It depends neither on the sizes of the inputs nor on the weights.

    Args:
        sites: sites that can be broadcast, in model order.
        cut: the option ``cut``.
    """
    words = [cut, *((site.name, site.kind, site.module) for site in sites)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
