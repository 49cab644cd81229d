"""A DiT in which nothing can be broadcast is refused with the reason, or computed throughout."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

import pab_compile
from pab_compile.errors import OFFER, UnsupportedModelError

from .build import Denoising, build
from .catalogue import CATALOGUE
from .oracle import RANGES, WINDOW
from .spec import WHAT_MODELS_WARN_OF, Dit

NUM_STEPS = 3
pytestmark = WHAT_MODELS_WARN_OF
BROKEN = replace(
    CATALOGUE["mochi"],
    graphs=20,
    switches={},
    unsupported="Nothing can be broadcast in this forward of 20 graph.*Dynamo broke it up because "
    "of: Dynamic shape operator.*capture_dynamic_output_shape_ops = True",
)
REFUSED = [
    *(pytest.param(dit, id=name) for name, dit in CATALOGUE.items() if dit.unsupported),
    pytest.param(BROKEN, id="mochi without its switch"),
]
# Of several graphs, the error of explain() is that of the warning.
IN_ONE_GRAPH = [param for param in REFUSED if param.values[0].graphs == 1]  # type: ignore[union-attr]


@pytest.mark.sample("transformer_temporal")
@pytest.mark.parametrize("dit", IN_ONE_GRAPH)
def test_what_is_not_supported_is_refused_with_the_reason(dit: Dit) -> None:
    model = build(dit)
    with pytest.raises(UnsupportedModelError, match=dit.unsupported):
        pab_compile.explain(model, options=dit.options, **dit.inputs())


@pytest.mark.sample("transformer_temporal")
@pytest.mark.parametrize("dit", REFUSED)
def test_what_is_passed_through_is_eager_at_every_step(dit: Dit) -> None:
    model = build(dit)
    loop = Denoising(dit, NUM_STEPS)
    eager = loop.run(model)
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW, **dit.options}
    compiled = torch.compile(
        model, backend="pab", options={**options, "on_unsupported": "passthrough"}
    )
    with pytest.warns(UserWarning, match=f"compiled without reuse. {dit.unsupported}"):
        actual = loop.run(compiled)
    for ours, theirs in zip(actual, eager, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.sample("transformer_temporal")
@pytest.mark.parametrize("dit", REFUSED)
def test_its_whole_output_is_offered_and_reused(dit: Dit) -> None:
    model = build(dit)
    loop = Denoising(dit, NUM_STEPS + 1)
    eager = loop.run(model)
    options = {"inner": "eager", "window": WINDOW, **dit.options}
    with pytest.raises(UnsupportedModelError, match=re.escape(OFFER)):
        loop.run(torch.compile(model, backend="pab", options=options))
    torch._dynamo.reset()
    options |= {"ranges": {"output": 2}, "cut": "output"}
    actual = loop.run(torch.compile(model, backend="pab", options=options))
    same = [
        all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        for ours, theirs in zip(actual, eager, strict=True)
    ]
    assert same == [True, False, True, False]
