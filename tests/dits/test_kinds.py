"""Every attention of every DiT is found, with its true kind."""

from __future__ import annotations

import re

import pytest

import pab_compile

from .build import build
from .catalogue import CATALOGUE
from .spec import Dit
from .truth import observe, true_counts

DITS = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items()]


@pytest.mark.parametrize("dit", DITS)
def test_what_runs_is_what_is_described_and_what_is_found(dit: Dit) -> None:
    model = build(dit)
    truth = observe(model, dit, **dit.inputs())
    assert truth.modules, "no attention module ran"
    assert all(path for path, _, _ in truth.sdpa), f"attention outside of Dit.kinds: {truth.sdpa}"

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


@pytest.mark.parametrize("dit", DITS)
def test_every_pattern_of_a_description_matches_a_module(dit: Dit) -> None:
    paths = [path for path, _ in build(dit).named_modules()]
    for pattern, _ in dit.kinds:
        assert any(re.search(pattern, path) for path in paths), f"{pattern} matches no module"
