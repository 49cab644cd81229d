"""The fingerprint of a model: a hash of everything that a plan refers to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any


def model_fingerprint(sites: Sequence[Any], cut: str) -> str:
    """Hash of the names, kinds and modules of the sites, and of the cut.

    It depends neither on the sizes of the inputs nor on the weights, nor on the order of the sites:
    parallel branches of a block stand in another order when a graph is cut elsewhere.

    Args:
        sites: sites that can be broadcast.
        cut: the option ``cut``.
    """
    return _hash(sorted(map(_words, sites)), cut)


def is_fingerprint_of(fingerprint: str, sites: Sequence[Any], cut: str) -> bool:
    """Whether a plan with this fingerprint is for these sites.

    Files of pab_compile 0.1 have the hash of the sites in model order.
    """
    return fingerprint in (model_fingerprint(sites, cut), _hash(map(_words, sites), cut))


def _words(site: Any) -> tuple[str, str, str]:
    return site.name, site.kind, site.module


def _hash(sites: Iterable[tuple[str, str, str]], cut: str) -> str:
    return hashlib.sha256(json.dumps([cut, *sites]).encode()).hexdigest()[:16]
