"""Methods of a module that run its forward, such as those that guide."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from foreign.base import Foreign
from foreign.test_foreign import NUM_STEPS, build, inputs_of
from helpers.latte import assert_different, assert_same


class Guided(Foreign):
    """Guidance in a method of its own; a part of the forward has a method as well."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> Any:
        return super().forward(self.forward_patches(x), timestep, context)

    def forward_patches(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.forward_scale()

    def forward_scale(self) -> float:
        return 2.0

    def forward_with_guidance(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, scale: float
    ) -> torch.Tensor:
        self.num_calls += 1
        half = x[: len(x) // 2]
        cond, rest = self.forward(torch.cat([half, half]), timestep, context).chunk(2)
        return rest + scale * (cond - rest)


def generate(model: Any) -> list[torch.Tensor]:
    found = []
    for step in range(NUM_STEPS):
        with pab_compile.step(step, NUM_STEPS):
            found.append(model.forward_with_guidance(**inputs_of(model, step), scale=3.0))
    return found


def test_enable_compiles_what_they_run() -> None:
    model = build(Guided)
    eager = generate(model)
    handle = pab_compile.enable(model, "off", inner="eager")
    for ours, right in zip(generate(model), eager, strict=True):
        assert_same(ours, right)
    handle.set("linear3")
    reused = generate(model)
    assert handle.stats()["model"].reused_share > 0
    assert_different(reused[1], eager[1])
    assert model.num_calls == 3 * NUM_STEPS
    handle.disable()
    assert "forward_with_guidance" not in vars(model)
    for ours, right in zip(generate(model), eager, strict=True):
        assert torch.equal(ours, right)


def test_without_enable_the_error_names_them_and_what_helps() -> None:
    model = build(Guided)
    compiled: Any = torch.compile(model, backend="pab", options={"inner": "eager"})
    generate(compiled)
    with pytest.raises(pab_compile.PabError, match="Its forward_with_guidance call forward"):
        pab_compile.stats(compiled)
    options = {"ranges": "linear3", "inner": "eager"}
    model.forward = torch.compile(model.forward, backend="pab", options=options)  # type: ignore[method-assign]
    generate(model)
    assert pab_compile.stats(model).reused_share > 0
