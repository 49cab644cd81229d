"""Modules whose Python code depends on values of tensors run as one op of the graph, unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import fx, nn

import pab_compile
from helpers.collecting import collecting
from helpers.experts import (
    TIMESTEPS,
    WIDTH,
    Attention,
    Dit,
    Experts,
    Mixture,
    as_oracle,
    calls,
    compiled,
    make,
)
from helpers.latte import assert_different, assert_same
from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.graph.kept import is_kept


def test_the_forward_is_one_graph_and_experts_are_mlps() -> None:
    model = make()
    found = pab_compile.explain(model, *next(calls()))
    assert found.num_graphs == 1
    assert "mixtures.0.experts and 1 more: run as they are" in str(found)
    assert found.counts() == {"full": 2}
    sites = {site.name: site.kind for site in found.sites}
    assert {name for name, kind in sites.items() if kind == "mlp"} == {
        "mixtures.0.experts",
        "mixtures.1.experts",
    }


class Writing(Experts):
    """It counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Remembering(Experts):
    """It keeps what it chose."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.gate(x).argmax(-1)
        return super().forward(x)


class Random(Experts):
    """It drops numbers at random."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (torch.rand_like(x) > 0.1)


class Attending(Experts):
    """An attention in plain ops besides the experts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + (x @ x.mT).softmax(-1) @ x


class InPlace(Experts):
    """It writes to its input, and gives it back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        x += out
        return x


class Wider(Experts):
    """Its result has a shape that no input has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[..., None]


class Pair(Experts):
    """It returns something besides a tensor."""

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), None


class Holds(nn.Module):
    """Experts that are called as the others, whatever they return."""

    def __init__(self, experts: type[nn.Module]) -> None:
        super().__init__()
        self.experts = experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.experts(x)
        found = found[0] if isinstance(found, tuple) else found
        return (found[..., 0] if found.ndim > x.ndim else found).sum() * x


def kept_nodes(module: nn.Module) -> list[fx.Node]:
    """The calls of modules that are kept. The outer one must return what it does uncompiled."""
    backend, graphs = collecting(is_marked=True)
    torch._dynamo.reset()
    x = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(0))
    ours = torch.compile(module, backend=backend, dynamic=False)
    with torch.no_grad():
        torch.manual_seed(3)
        found = ours(x.clone())
        torch.manual_seed(3)
        assert torch.equal(found, copy.deepcopy(module)(x.clone()))
    return [node for graph in graphs for node in graph.graph.nodes if is_kept(node)]


@pytest.mark.parametrize("experts", [Writing, Remembering, Random, Attending, InPlace, Wider, Pair])
def test_a_module_that_does_more_than_return_a_tensor_is_not_kept(
    experts: type[nn.Module],
) -> None:
    assert not kept_nodes(Holds(experts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_reused_is_eager(dtype: torch.dtype) -> None:
    model = make(dtype=dtype)
    ours = compiled(model, ranges={})
    before = [(name, id(value)) for each in model.modules() for name, value in vars(each).items()]
    for inputs in calls(dtype):
        assert torch.equal(ours(*inputs), model(*inputs))
    after = [(name, id(value)) for each in model.modules() for name, value in vars(each).items()]
    assert after == before


@pytest.mark.parametrize(
    ("options", "every", "is_line"),
    [
        ({"ranges": {"full": 2}}, {Attention: 2}, False),
        ({"ranges": {"full": 2, "mlp": 4}}, {Attention: 2, Mixture: 4}, False),
        ({"ranges": "linear3"}, {Attention: 3, Mixture: 3}, True),
    ],
)
def test_reuse_is_that_of_a_model_that_repeats_itself(
    options: dict[str, Any], every: dict[type, int], is_line: bool
) -> None:
    model = make()
    ours = compiled(model, **options)
    with pab_compile.generation(timesteps=TIMESTEPS):
        actual = [ours(*inputs) for inputs in calls()]
    with as_oracle(model, every, is_line) as oracle:
        expected = [oracle(step, *inputs) for step, inputs in enumerate(calls())]
    assert_same(torch.stack(actual), torch.stack(expected))
    assert_different(torch.stack(actual), torch.stack([model(*inputs) for inputs in calls()]))


def test_another_result_than_the_first_is_an_error() -> None:
    class Turns(Experts):
        is_wide = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = super().forward(x)
            return found.double() if Turns.is_wide else found

    model = make(Turns)
    ours = compiled(model, ranges={})
    first, second, *_ = calls()
    ours(*first)
    Turns.is_wide = True
    with pytest.raises(UnsupportedModelError, match=r"mixtures.0.experts.*now a tensor.*float64"):
        ours(*second)


def test_what_was_computed_with_other_weights_is_not_reused() -> None:
    model = make()
    ours = compiled(model, ranges={"full": 4, "mlp": 4})
    with pab_compile.generation(timesteps=TIMESTEPS):
        first, second, third, *_ = calls()
        ours(*first)
        experts = model.mixtures[0].experts
        experts.gate.weight.mul_(-1)  # type: ignore[union-attr]
        assert torch.equal(ours(*second), model(*second))
        experts.experts[1] = nn.Linear(WIDTH, WIDTH).requires_grad_(False)  # type: ignore[index]
        assert torch.equal(ours(*third), model(*third))


class Adapted(Experts):
    """An adapter may be attached, which no code that Dynamo traced reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = super().forward(x)
        adapter = self._modules.get("adapter")
        return found if adapter is None else found + adapter(x)


def test_an_adapter_that_is_attached_is_noticed() -> None:
    model = make(Adapted)
    ours = compiled(model, ranges={"mlp": 4})
    with pab_compile.generation(timesteps=TIMESTEPS):
        first, second, *_ = calls()
        ours(*first)
        experts: Any = model.mixtures[0].experts
        experts.add_module("adapter", nn.Linear(WIDTH, WIDTH).requires_grad_(False))
        assert torch.equal(ours(*second), model(*second))


def test_hooks_and_weights_in_the_place_of_others_go_on() -> None:
    model = make()
    ours = compiled(model, ranges={})
    first, second, *_ = calls()
    ours(*first)
    seen: list[int] = []
    expert = model.mixtures[1].experts.experts[0]  # type: ignore[union-attr, index]
    hook = expert.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(ours(*second), model(*second))
    assert len(seen) == 2
    hook.remove()


def test_equal_blocks_share_a_piece() -> None:
    torch.manual_seed(0)
    counts = []
    for depth in (2, 4):
        torch._dynamo.reset()
        model = Dit(depth=depth).requires_grad_(False).eval()
        ours = compiled(model, ranges={"full": 2, "mlp": 2})
        ours(*next(calls()))
        counts.append(pab_compile.stats(ours).num_pieces)
    assert counts[0] == counts[1]


class Capped(Experts):
    """Its experts have room for half of the tokens, so tokens are not apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        chosen = self.gate(rows).argmax(-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            mine = (chosen == number).nonzero()[: len(rows) // 2, 0]
            if mine.numel():
                out[mine] = expert(rows[mine])
        return out.view_as(x)


@pytest.mark.parametrize("experts", [Experts, Capped])
def test_what_was_tried_to_keep_tokens_apart_is_known(experts: type[nn.Module]) -> None:
    nodes = kept_nodes(Holds(experts))
    assert [node.args[6] for node in nodes] == [experts is Experts]
