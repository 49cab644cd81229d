"""Every attention of every DiT is found, with its true kind."""

from __future__ import annotations

import re

import pytest

import pab_compile

from .build import build
from .catalogue import CATALOGUE
from .spec import Dit
from .truth import observe, true_counts

# Some models ask for autocast to float32, which CPUs do not have and say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]
EVERY = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items()]
SUPPORTED = [param for param in EVERY if not param.values[0].unsupported]  # type: ignore[union-attr]


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


@pytest.mark.parametrize("dit", SUPPORTED)
def test_what_is_found_is_what_runs(dit: Dit) -> None:
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    with dit.switched():
        explanation = pab_compile.explain(model, options=dit.options, **dit.inputs())
    wrong = [
        f"{site.name} is {dit.kind_of(site.module)}, not {site.kind}: {site.reason}"
        for site in explanation.sites
        if site.kind != "mlp" and dit.kind_of(site.module) not in (None, site.kind)
    ]
    assert not wrong, "\n".join(wrong)
    assert explanation.counts() == true_counts(truth, dit), str(explanation)
    assert explanation.num_graphs == dit.graphs
    assert not dit.computed or any(dit.computed in note for note in explanation.notes)
    mechanisms = {s.kind: s.mechanism for s in explanation.sites if s.kind != "mlp"}
    assert mechanisms == {kind: dit.mechanism.get(kind, "sdpa") for kind in mechanisms}
