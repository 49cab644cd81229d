"""Models whose linear layers are quantised: weights that are tensors made of other tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import compiled_pab, ddim_timesteps, draw_latents, draw_prompt, tiny_latte
from helpers.pairs import RULE, Pair
from helpers.scaled import quantise


def by_torchao(name: str) -> Callable[[torch.nn.Module], None]:
    def apply(model: torch.nn.Module) -> None:
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(model, getattr(quantization, name)())

    return apply


QUANTISERS = {
    "own": quantise,
    "int8 weights": by_torchao("Int8WeightOnlyConfig"),
    "float8 weights": by_torchao("Float8WeightOnlyConfig"),
    "int8 weights and activations": by_torchao("Int8DynamicActivationInt8WeightConfig"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_model_reuses_as_the_oracle_does(name: str) -> None:
    model = tiny_latte(depth=1)
    QUANTISERS[name](model)
    assert type(model.transformer_blocks[0].attn1.to_q.weight.data) is not torch.Tensor
    compiled: Any = compiled_pab(model, **RULE.options())
    for seed in (1, 2):
        Pair(model, compiled, latents=draw_latents(seed), guidance="two calls").run()
    stats = pab_compile.stats(compiled)
    assert (stats.lanes, stats.notes) == (2, ())
    assert all(stats.reused.values())


@pytest.mark.long
def test_the_sites_of_a_quantised_model_are_those_of_the_model() -> None:
    inputs = {
        "hidden_states": draw_latents(),
        "timestep": ddim_timesteps(4)[:1],
        "encoder_hidden_states": draw_prompt(),
    }
    plain = pab_compile.explain(tiny_latte(depth=1), **inputs)
    model = tiny_latte(depth=1)
    QUANTISERS["int8 weights and activations"](model)
    found = pab_compile.explain(model, **inputs)
    assert found.counts() == plain.counts()
    assert [site.name for site in found.sites] == [site.name for site in plain.sites]
    assert found.notes == ()


@pytest.mark.long
@pytest.mark.slow
def test_inductor_compiles_the_pieces_of_a_quantised_model() -> None:
    model = tiny_latte(depth=1)
    quantise(model)
    Pair(model, compiled_pab(model, **RULE.options(), inner="inductor")).run()
