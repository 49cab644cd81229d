"""The variety of models and calls that users have: types, casts, adapters, weights that change."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel
from diffusers.models.attention_processor import Attention, FusedAttnProcessor2_0

from dits.build import Denoising, build
from dits.catalogue import CATALOGUE
from dits.oracle import RANGES, WINDOW, check_reuse
from dits.oracle import Oracle as ModuleOracle
from helpers.latte import (
    Loop,
    assert_different,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.oracle import Oracle
from helpers.pairs import NUM_STEPS, RULE, Pair


class Adapted(torch.nn.Module):
    """A linear layer with low-rank adapters, of which one or none is on.

    Args:
        inner: the layer.
        names: of the adapters.
    """

    def __init__(self, inner: torch.nn.Linear, names: tuple[str, ...]) -> None:
        super().__init__()
        self.inner, self.active = inner, ""
        self.down = torch.nn.ParameterDict(
            {name: 0.3 * torch.randn(2, inner.in_features) for name in names}
        )
        self.up = torch.nn.ParameterDict(
            {name: 0.3 * torch.randn(inner.out_features, 2) for name in names}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.inner(x)
        if self.active:
            out = out + x @ self.down[self.active].T @ self.up[self.active].T
        return out

    def fuse(self, name: str, sign: int = 1) -> None:
        """Add an adapter to the weight in place, or take it away."""
        self.inner.weight.data += sign * self.up[name] @ self.down[name]


def adapt(model: LatteTransformer3DModel) -> list[Adapted]:
    """Adapters on the keys and values of every attention, cross-attention included."""
    made = []
    for module in list(model.modules()):
        if hasattr(module, "to_k"):
            module.to_k = Adapted(module.to_k, ("a", "b"))  # type: ignore[assignment]
            module.to_v = Adapted(module.to_v, ("a", "b"))  # type: ignore[assignment]
            made += [module.to_k, module.to_v]
    model.requires_grad_(False)
    return made


@pytest.mark.sample("dtype1")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_low_precision_are_those_of_eager_in_the_same_type(dtype: torch.dtype) -> None:
    model = tiny_latte(depth=1).to(dtype)
    given: dict[str, Any] = {
        "timesteps": ddim_timesteps(NUM_STEPS),
        "latents": draw_latents().to(dtype),
        "prompt": draw_prompt().to(dtype),
        "null_prompt": draw_prompt(3).to(dtype),
    }
    actual = Loop(calls_of(compiled_pab(model, **RULE.options())), **given).run()
    assert actual.dtype == dtype
    assert_same(actual, Loop(Oracle(model, RULE), **given).run(), tolerance=0.0)
    assert_different(actual, Loop(calls_of(model), **given).run())


@pytest.mark.long
def test_adapters_that_are_switched_between_generations() -> None:
    model = tiny_latte(depth=1)
    adapters = adapt(model)
    compiled = compiled_pab(model, **RULE.options())
    latents, prompt = draw_latents(), draw_prompt()
    results = []
    for name in ("a", "b", "", "a"):
        for adapter in adapters:
            adapter.active = name
        pair = Pair(model, compiled, latents=latents, prompt=prompt)
        pair.run()
        results.append(torch.stack(pair.actual.predictions))
    assert_same(results[3], results[0])
    assert_different(results[1], results[0])


def test_adapters_fused_into_the_weights_between_generations() -> None:
    # The same noise and the same prompt: keys and values held for the prompt are of old weights.
    model = tiny_latte(depth=1)
    adapters = adapt(model)
    compiled = compiled_pab(model, **RULE.options())
    latents, prompt = draw_latents(), draw_prompt()
    for name, sign in (("a", 1), ("a", -1), ("b", 1)):
        for adapter in adapters:
            adapter.fuse(name, sign)
        Pair(model, compiled, latents=latents, prompt=prompt).run()


# Adapters of peft, and what diffusers does to its attentions.


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_adapters_of_peft_are_switched_scaled_and_fused_between_generations() -> None:
    peft = pytest.importorskip("peft")
    dit = CATALOGUE["wan"]
    model: Any = build(dit)
    for name in ("a", "b"):
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        model.add_adapter(config, adapter_name=name)
    model.requires_grad_(False)
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW}
    compiled = torch.compile(model, backend="pab", options=options)
    loop = Denoising(dit, 6)  # the same noise and prompt in every generation

    def generate() -> torch.Tensor:
        return check_reuse(loop, model, compiled, ModuleOracle(copy.deepcopy(model), dit))

    model.set_adapter("a")
    only_a = generate()
    model.set_adapters(["a", "b"], [0.5, 2.0])
    assert_different(generate(), only_a)
    model.set_adapter("a")
    model.fuse_lora(adapter_names=["a"])
    assert_different(generate(), only_a)  # at the scale of the second generation
    model.unfuse_lora()
    model.disable_adapters()
    assert_different(generate(), only_a)


@pytest.mark.long
def test_projections_fused_between_generations() -> None:
    model = tiny_latte(depth=1)
    compiled = compiled_pab(model, **RULE.options())
    Pair(model, compiled).run()
    for module in model.modules():
        if isinstance(module, Attention):
            module.fuse_projections()
            module.set_processor(FusedAttnProcessor2_0())
    assert model.transformer_blocks[0].attn1.fused_projections
    Pair(model, compiled).run()


@pytest.mark.long
def test_autocast_around_the_calls() -> None:
    model = tiny_latte(depth=1)
    compiled = compiled_pab(model, **RULE.options())
    results = []
    for dtype in (torch.bfloat16, None, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            pair = Pair(model, compiled, latents=draw_latents(), prompt=draw_prompt())
            pair.actual.run()
            expected = pair.oracle.run()
            assert_different(expected, pair.eager.run())
            results.append(torch.stack(pair.actual.predictions))
            assert_same(results[-1], expected, tolerance=0.0 if dtype is None else 1e-5)
    assert_different(results[0], results[1])
