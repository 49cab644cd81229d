"""Off: everything computes, and the result is that of the model itself, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pab_compile
from helpers.eager_code import Dit, calls, make
from helpers.latte import Loop, calls_of, ddim_timesteps, draw_latents, draw_prompt, tiny_latte
from helpers.switching import Compilations

DTYPES = (torch.float32, torch.bfloat16)
ADDS: dict[str, Callable[..., torch.Tensor]] = {
    "addcmul": lambda x, y, g: torch.addcmul(x, y, g),
    "float32 around the sum": lambda x, y, g: (x.float() + y.float() * g.float()).type_as(x),
    "alpha": lambda x, y, g: torch.add(x, y * g, alpha=0.5),
}


class Gated(Dit):
    """Residuals with a gate of the step, added in one op or around a cast."""

    def __init__(self, add: str) -> None:
        super().__init__()
        self.add = add

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        add, gate = ADDS[self.add], self.embed(timestep).to(x.dtype)
        x = self.patch(x)
        x = add(x, self.full(x, x), gate)
        x = add(x, self.cross(x, context), gate)
        return self.last(x)

    def embed(self, timestep: torch.Tensor) -> torch.Tensor:
        waves = (timestep[:, None].float() / 100 * torch.arange(8)).sin()
        return self.time(waves.to(self.time.weight.dtype))[:, None]


@pytest.mark.sample("pab246-torch.bfloat16")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("before", ["balanced", "pab246", "off"])
def test_off_is_the_model_itself(dtype: torch.dtype, before: str) -> None:
    model = tiny_latte().to(dtype)
    loop: dict[str, Any] = {
        "latents": draw_latents().to(dtype),
        "prompt": draw_prompt().to(dtype),
    }
    eager = Loop(calls_of(model), ddim_timesteps(12), **loop).run()
    handle = pab_compile.enable(model, before, inner="eager")
    first = Loop(calls_of(model), ddim_timesteps(12), **loop).run()
    assert torch.equal(first, eager) == (before == "off")
    with handle.disabled():
        assert torch.equal(Loop(calls_of(model), ddim_timesteps(12), **loop).run(), eager)
    assert sum(handle.stats()["model"].reused.values()) == 0
    assert handle.stats()["model"].peak_cache_bytes == 0


@pytest.mark.sample("addcmul-torch.float32", "float32 around the sum-torch.bfloat16")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("add", ADDS)
def test_off_rounds_as_the_model_does(dtype: torch.dtype, add: str) -> None:
    torch.manual_seed(0)
    model = Gated(add).eval().requires_grad_(False).to(dtype)
    inputs = [(x.to(dtype), t, c) for x, t, c in calls(dtype)]
    eager = [model(*each) for each in inputs]
    for plan in ("balanced", "pab246", {"ranges": {"full": 2, "cross": 3}, "cut": "branch"}):
        handle = pab_compile.enable(model, "off", inner="eager")
        handle.set(plan)
        handle.off()
        found = [model(*each) for each in inputs]
        assert all(map(torch.equal, found, eager)), plan
        handle.disable()


def test_off_of_a_model_whose_weights_are_packed() -> None:
    model = make("a packed weight")
    eager = [model(*each) for each in calls()]
    pab_compile.enable(model, "off", inner="eager")
    assert all(map(torch.equal, [model(*each) for each in calls()], eager))


def test_exact_is_compiled_once_and_runs_without_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("plain")
    eager = [model(*each) for each in calls()]
    compilations = Compilations(monkeypatch)
    pieces: list[int] = []

    def inner(graph_module: Any, _: Any) -> Any:
        pieces.append(len(graph_module.graph.nodes))
        return graph_module.forward

    handle = pab_compile.enable(model, inner=inner)
    for _ in range(2):
        with handle.disabled(exact=True):
            assert handle.plan == "off"
            assert all(map(torch.equal, [model(*each) for each in calls()], eager))
    assert compilations.count == len(pieces) == 1
    assert handle.plan == "balanced"
    handle.off(exact=True)
    assert all(map(torch.equal, [model(*each) for each in calls()], eager))
    handle.off()
    assert all(map(torch.equal, [model(*each) for each in calls()], eager))
    assert compilations.count == 1
    handle.set("linear3")
    reused = [model(*each) for each in calls()]
    assert not all(map(torch.equal, reused, eager))
    assert compilations.count == 2
    assert len(pieces) > 2


@pytest.mark.long
def test_exact_is_what_stock_torch_compile_gives() -> None:
    torch.manual_seed(0)
    model = Gated("addcmul").eval().requires_grad_(False).to(torch.bfloat16)
    inputs = [(x, t, c.to(torch.bfloat16)) for x, t, c in calls(torch.bfloat16)]
    stock = torch.compile(model)
    expected = [stock(*each) for each in inputs]
    handle = pab_compile.enable(model, "linear3")
    with handle.disabled(exact=True):
        found = [model(*each) for each in inputs]
    assert all(map(torch.equal, found, expected))
