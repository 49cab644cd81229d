"""The variety of models and calls that users have: types, casts, adapters, weights that change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

from latte import (
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
from oracle import Oracle
from pairs import NUM_STEPS, RULE, Pair


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
