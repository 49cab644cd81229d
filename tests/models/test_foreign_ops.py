"""Ops that nobody knows, and ops with an effect: computed at every step, and named in the table."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as f

import pab_compile
from helpers.latte import assert_same, compiled_pab

WIDTH, NUM_STEPS = 16, 6


@torch.library.custom_op("pab_tests::mingle", mutates_args=())
def mingle(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """An attention under a name that says nothing."""
    return torch.softmax(q @ k.mT, -1) @ v


@mingle.register_fake
def _(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return v.new_empty(v.shape)


class Dit(nn.Module):
    """One attention of torch, and one of a stranger, over packed tokens ``[b, s, c]``.

    The stranger has no heads, so nothing but its name could say that it is an attention.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise
        self.known, self.strange = (nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.back = nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(8, WIDTH)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        angles = timestep[:, None] * torch.arange(8)
        x = hidden_states + self.time(angles.sin())[:, None]
        x = x + self.back(f.scaled_dot_product_attention(*self.known(x).chunk(3, -1)))
        if not self.noise:
            return x + self.back(mingle(*self.strange(x).chunk(3, -1)))
        noisy = self.strange(x + self.noise * torch.randn_like(x)).chunk(3, -1)
        return x + self.back(f.scaled_dot_product_attention(*noisy))


class HeadsDit(nn.Module):
    """The stranger again, with heads, between its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.strange = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.back = nn.Linear(WIDTH, WIDTH)
        self.time = nn.Linear(8, WIDTH)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = hidden_states + self.time((timestep[:, None] * torch.arange(8)).sin())[:, None]
        q, k, v = (make(x).unflatten(-1, (2, -1)).transpose(1, 2) for make in self.strange)
        return x + self.back(mingle(q, k, v).transpose(1, 2).flatten(2))


def make(noise: float = 0.0) -> Dit:
    torch.manual_seed(0)
    return Dit(noise).eval().requires_grad_(False)


def inputs(step: int) -> dict[str, torch.Tensor]:
    latents = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(step))
    return {"hidden_states": latents, "timestep": torch.full((2,), 900.0 - 100 * step)}


def test_an_unknown_op_is_named_and_computed_at_every_step() -> None:
    model = make()
    found = pab_compile.explain(model, **inputs(0))
    assert found.counts() == {"full": 1, "other": 1}
    strange = next(site for site in found.sites if site.kind == "other")
    assert (strange.mechanism, strange.range) == ("opaque", 1)
    assert "unknown op pab_tests.mingle" in strange.reason
    assert "unknown op pab_tests.mingle" in str(found)

    compiled = compiled_pab(model, ranges={"full": 2}, window=(0.0, 1.0))
    table = torch.arange(900.0, 300.0, -100.0)
    for step in range(NUM_STEPS):
        with torch.no_grad():
            compiled(inputs(step)["hidden_states"], timestep=table[step].expand(2))
    stats = pab_compile.stats(compiled)
    assert stats.computed["other"] == NUM_STEPS
    assert stats.computed["full"] == NUM_STEPS // 2


def test_it_may_be_reused_where_the_user_says_so() -> None:
    model = make()
    compiled = compiled_pab(model, ranges={"other": 2}, window=(0.0, 1.0))
    table = torch.arange(900.0, 300.0, -100.0)
    held = torch.empty(0)
    for step in range(NUM_STEPS):
        latents = inputs(step)["hidden_states"]
        with torch.no_grad():
            actual = compiled(latents, timestep=table[step].expand(2))
            x = latents + model.time((table[step] * torch.arange(8)).sin())
            q, k, v = model.known(x).chunk(3, -1)
            x = x + model.back(f.scaled_dot_product_attention(q, k, v))
            if step % 2 == 0:
                held = model.back(mingle(*model.strange(x).chunk(3, -1)))
        assert_same(actual, x + held)


def test_an_op_of_any_name_between_projections_is_reused_as_an_attention() -> None:
    torch.manual_seed(0)
    model = HeadsDit().eval().requires_grad_(False)
    found = pab_compile.explain(model, **inputs(0))
    assert found.counts() == {"full": 1}
    assert "pab_tests.mingle.default is not known: taken for an attention" in str(found)
    compiled = compiled_pab(model, ranges={"full": 2}, window=(0.0, 1.0))
    table = torch.arange(900.0, 300.0, -100.0)
    held = torch.empty(0)
    for step in range(NUM_STEPS):
        latents = inputs(step)["hidden_states"]
        with torch.no_grad():
            actual = compiled(latents, timestep=table[step].expand(2))
            x = latents + model.time((table[step] * torch.arange(8)).sin())
            if step % 2 == 0:
                held = model(latents, table[step].expand(2)) - x
        assert_same(actual, x + held)
    assert pab_compile.stats(compiled).reused == {"full": NUM_STEPS // 2}


def test_a_branch_with_random_numbers_is_never_left_out() -> None:
    model = make(noise=0.5)
    found = pab_compile.explain(model, **inputs(0))
    sites = {site.reason.partition("not broadcast: ")[2] for site in found.sites}
    assert "it must not be left out, since it holds randn_like" in sites
    compiled = compiled_pab(model, ranges={"full": 2}, window=(0.0, 1.0))
    table = torch.arange(900.0, 300.0, -100.0)
    for step in range(2):
        torch.manual_seed(step)
        with torch.no_grad():
            actual = compiled(inputs(0)["hidden_states"], timestep=table[step].expand(2))
        if step == 0:
            torch.manual_seed(step)
            with torch.no_grad():
                expected = model(inputs(0)["hidden_states"], timestep=table[step].expand(2))
            assert torch.equal(actual, expected)
    assert pab_compile.stats(compiled).reused["full"] == 1
