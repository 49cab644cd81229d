"""A tiny Latte, and the same one compiled with the rule of ``helpers.pairs``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diffusers import LatteTransformer3DModel

from helpers.latte import compiled_pab, tiny_latte
from helpers.pairs import RULE


@pytest.fixture(scope="package")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


@pytest.fixture
def compiled(model: LatteTransformer3DModel) -> Callable[..., Any]:
    return compiled_pab(model, **RULE.options())
