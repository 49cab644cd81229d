"""The example of a model that no library knows: recognised, and reused as module hooks would."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

ROOT = Path(__file__).parents[2]
RANGES = {"spatial": 2, "temporal": 4, "cross": 6}
LETTERS = {"a": "spatial", "b": "temporal", "c": "cross"}
NUM_STEPS = 12


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "your_own_dit", ROOT / "examples" / "your_own_dit.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["your_own_dit"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(example: ModuleType) -> torch.nn.Module:
    torch.manual_seed(0)
    return example.Painter(num_layers=2).eval().requires_grad_(False)


def loop(example: ModuleType, call: Any) -> list[torch.Tensor]:
    inputs = example.make_inputs()
    x, predictions = inputs["x"], []
    with torch.no_grad():
        for t in torch.linspace(1000, 50, NUM_STEPS):
            predictions.append(call(x=x, t=t.expand(len(x)), prompt=inputs["prompt"]))
            x = x - predictions[-1] / NUM_STEPS
    return predictions


def hooked(model: Any) -> Any:
    """The model with the outputs of its attentions reused by the rule."""
    step = -1

    def reusing(real: Any, kind: str) -> Any:
        held: list[torch.Tensor] = []

        def forward(*args: torch.Tensor) -> torch.Tensor:
            if step % RANGES[kind] == 0:
                held[:] = [real(*args)]
            return held[0]

        return forward

    for layer in model.layers:
        for letter, kind in LETTERS.items():
            gather = getattr(layer, letter)
            gather.forward = reusing(gather.forward, kind)

    def at_next_step(**inputs: torch.Tensor) -> torch.Tensor:
        nonlocal step
        step += 1
        return model(**inputs)

    return at_next_step


@pytest.mark.long
def test_its_attentions_are_recognised(example: ModuleType, model: torch.nn.Module) -> None:
    found = pab_compile.explain(model, **example.make_inputs())
    assert found.counts() == {"spatial": 2, "temporal": 2, "cross": 2}
    assert [site.name for site in found.sites[:3]] == ["layers.0.a", "layers.0.b", "layers.0.c"]
    assert (found.latents, found.clock) == ("x", "t")


@pytest.mark.long
def test_without_ranges_it_is_itself(example: ModuleType, model: torch.nn.Module) -> None:
    options = {"inner": "eager", "ranges": {}}
    compiled = torch.compile(model, backend="pab", options=options)
    for ours, theirs in zip(loop(example, compiled), loop(example, model), strict=True):
        assert torch.equal(ours, theirs)


def test_with_ranges_it_reuses_as_hooks_would(example: ModuleType, model: torch.nn.Module) -> None:
    options = {"inner": "eager", "ranges": RANGES, "window": (0.0, 1.0)}
    compiled = torch.compile(model, backend="pab", options=options)
    ours, eager = loop(example, compiled), loop(example, model)
    computed = pab_compile.stats(compiled).computed
    assert {kind: computed[kind] // 2 for kind in RANGES} == {
        "spatial": 6,
        "temporal": 3,
        "cross": 2,
    }
    for mine, theirs in zip(ours, loop(example, hooked(model)), strict=True):
        assert_same(mine, theirs)
    assert_different(torch.stack(ours), torch.stack(eager))


def test_the_table_in_the_docs_is_what_the_example_prints(example: ModuleType) -> None:
    torch.manual_seed(0)
    found = pab_compile.explain(example.Painter().eval(), **example.make_inputs())
    page = (ROOT / "docs" / "recognition.md").read_text(encoding="utf-8")
    table = [line for line in str(found).splitlines() if " like layers.0" in line and "%" in line]
    assert len(table) == 4
    for line in table:
        assert line in page


def test_the_docs_list_every_reason_against_broadcasting() -> None:
    page = (ROOT / "docs" / "recognition.md").read_text(encoding="utf-8")
    sources = [*ROOT.glob("passes/**/*.py"), *ROOT.glob("pab_compile/**/*.py")]
    found = {
        phrase.strip(" ,;")
        for path in sources
        for phrase in re.findall(r"not broadcast: ([^\"{]+)", path.read_text(encoding="utf-8"))
    }
    assert len(found) >= 4
    assert [phrase for phrase in sorted(found) if f"not broadcast: {phrase}" not in page] == []
