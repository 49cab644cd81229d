"""Every attention of every DiT is found, with its true kind."""

from __future__ import annotations

import re

import pytest

import pab_compile
from pab_compile.passes.errors import UnsupportedModelError

from .build import build
from .catalogue import CATALOGUE
from .spec import Dit
from .truth import observe, true_counts

# Some models ask for autocast to float32, which CPUs do not have and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]
EVERY = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items()]
SUPPORTED = [param for param in EVERY if not param.values[0].unsupported]  # type: ignore[union-attr]
# Where torch fails on a mask made by vmap it leaves the vmap behind, which disturbs later tests:
# these models are examined by ``python -m tests.dits`` only.
_LEAVES_VMAP = ("anyflow_far", "kandinsky6_sr")
REFUSED = [
    pytest.param(dit, id=name)
    for name, dit in CATALOGUE.items()
    if dit.unsupported and name not in _LEAVES_VMAP
]


@pytest.mark.parametrize("dit", EVERY)
def test_what_runs_is_what_is_described(dit: Dit) -> None:
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    assert truth.modules, "no attention module ran"
    assert all(path for path, _, _ in truth.sdpa), f"attention outside of Dit.kinds: {truth.sdpa}"
    paths = [path for path, _ in model.named_modules()]
    for pattern, _ in dit.kinds:
        assert any(re.search(pattern, path) for path in paths), f"{pattern} matches no module"


@pytest.mark.parametrize("dit", SUPPORTED)
def test_what_is_found_is_what_runs(dit: Dit) -> None:
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    explanation = pab_compile.explain(model, options=dit.options, **dit.inputs())
    wrong = [
        f"{site.name} is {dit.kind_of(site.module)}, not {site.kind}: {site.reason}"
        for site in explanation.sites
        if site.kind != "mlp" and dit.kind_of(site.module) not in (None, site.kind)
    ]
    assert not wrong, "\n".join(wrong)
    assert explanation.counts() == true_counts(truth, dit), str(explanation)
    mechanisms = {s.kind: s.mechanism for s in explanation.sites if s.kind != "mlp"}
    assert mechanisms == {kind: dit.mechanism.get(kind, "sdpa") for kind in mechanisms}


@pytest.mark.parametrize("dit", REFUSED)
def test_what_is_not_supported_is_refused_with_the_reason(dit: Dit) -> None:
    model = build(dit)
    with pytest.raises(UnsupportedModelError, match=dit.unsupported):
        pab_compile.explain(model, options=dit.options, **dit.inputs())
