"""The model that a plan was tuned on: other architectures are told apart, other forms are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from helpers.captured import SmallDiT
from pab_compile.errors import PlanError
from pab_compile.plans.tuned_model import TunedModel, tuned_model_from_json


def small(depth: int = 2, seed: int = 0) -> SmallDiT:
    torch.manual_seed(seed)
    return SmallDiT(depth).requires_grad_(False)


class Adapted(torch.nn.Module):
    """A linear layer with an adapter around it."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.down = torch.nn.ModuleDict({"default": down})


class Packed(torch.nn.Linear):
    """A linear layer whose weight is packed in other numbers."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        packed = torch.zeros(7, dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.bias = layer.bias


def with_last(make: Any) -> torch.nn.Module:
    """The model with another last layer."""
    model = small()
    model.last = make(model.last)
    return model


def trained(model: SmallDiT) -> torch.nn.Module:
    """A fine-tune: one of the matrices is another."""
    model.last.weight += 0.1
    return model


OURS = TunedModel.of(small())
SAME_WEIGHTS: dict[str, Any] = {
    "a copy": lambda: copy.deepcopy(small()),
    "another dtype": lambda: small().to(torch.bfloat16),
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "in a module of its own": lambda: torch.nn.ModuleDict({"inner": small()}),
    "with a wrapped layer": lambda: with_last(lambda last: torch.compile(last, backend="eager")),
    "without values": lambda: small().to("meta"),
    "with a packed layer": lambda: with_last(Packed),
}
OTHER_WEIGHTS: dict[str, Any] = {
    "another seed": lambda: small(seed=1),
    "a fine-tune": lambda: trained(small()),
    "an adapter": lambda: with_last(Adapted),
}
OTHER_MODELS: dict[str, Any] = {
    "another depth": lambda: small(3),
    "another size": lambda: with_last(lambda last: torch.nn.Linear(last.in_features, 9)),
    "no bias": lambda: with_last(
        lambda last: torch.nn.Linear(last.in_features, last.out_features, bias=False)
    ),
    "another norm": lambda: with_last(lambda last: torch.nn.LayerNorm(last.in_features)),
}


@pytest.mark.parametrize("case", [*SAME_WEIGHTS, *OTHER_WEIGHTS])
def test_another_form_of_a_model_and_other_weights_fit(case: str) -> None:
    found = TunedModel.of((SAME_WEIGHTS | OTHER_WEIGHTS)[case]())
    assert OURS.misfit(found) == ""
    assert OURS.has_other_weights(found) == (case in OTHER_WEIGHTS)
    assert found.has_other_weights(OURS) == (case in OTHER_WEIGHTS)


@pytest.mark.parametrize("case", OTHER_MODELS)
def test_another_architecture_does_not_fit(case: str) -> None:
    found = TunedModel.of(OTHER_MODELS[case]())
    message = OURS.misfit(found)
    assert message.startswith(f"was tuned on the model SmallDiT with {OURS.num_weights:,} weights")
    assert f"fingerprint {found.fingerprint}" in message


def test_an_adapter_that_was_there_when_it_was_tuned_is_no_other_weight() -> None:
    torch.manual_seed(3)
    adapted = with_last(Adapted)
    ours = TunedModel.of(adapted)
    assert not ours.has_other_weights(TunedModel.of(copy.deepcopy(adapted)))
    adapted.last.down["default"].weight.data += 1  # type: ignore[index, union-attr]
    assert ours.has_other_weights(TunedModel.of(adapted))


def test_what_a_file_says_is_read_again() -> None:
    assert tuned_model_from_json(OURS.to_json(), "p") == OURS
    assert tuned_model_from_json(None, "p") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": None},
        {"name": 3},
        {"num_weights": "many"},
        {"weights": [float("nan")]},
        {"weights": None},
        {"adapters": ["a"]},
    ],
    ids=str,
)
def test_a_file_that_was_edited_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r'^p: "model" needs .* cut short or edited'):
        tuned_model_from_json({**OURS.to_json(), **changes}, "p")
