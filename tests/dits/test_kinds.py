"""What runs in every DiT, and that ``explain`` finds it where a forward has several graphs.

Of all DiTs ``test_reuse`` asks what was found once they are compiled. ``explain`` of a model that
is not compiled takes the graphs of a forward one by one itself. It is asked of two models, the
second of which has graphs without latents.
"""

from __future__ import annotations

import re

import pytest

import pab_compile

from .build import build
from .catalogue import CATALOGUE
from .spec import WHAT_MODELS_WARN_OF, Dit
from .truth import assert_found, observe

pytestmark = WHAT_MODELS_WARN_OF
EVERY = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items()]
IN_PARTS = ["lumina2", "hunyuan_image_glyphs"]


@pytest.mark.long
@pytest.mark.parametrize("dit", EVERY)
def test_what_runs_is_what_is_described(dit: Dit) -> None:
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    assert truth.modules, "no attention module ran"
    assert all(path for path, _, _ in truth.sdpa), f"attention outside of Dit.kinds: {truth.sdpa}"
    paths = [path for path, _ in model.named_modules()]
    for pattern, _ in dit.kinds:
        assert any(re.search(pattern, path) for path in paths), f"{pattern} matches no module"
    if dit.streams > 1:
        assert len(truth.sdpa) == dit.streams * truth.modules.total()


@pytest.mark.long
@pytest.mark.parametrize("name", IN_PARTS)
def test_what_is_found_is_what_runs(name: str) -> None:
    dit = CATALOGUE[name]
    assert dit.graphs > 1
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    with dit.switched():
        explanation = pab_compile.explain(model, options=dit.options, **dit.inputs())
    assert_found(explanation, truth, dit)
