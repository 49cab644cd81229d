"""Buckets: prompts of many lengths run in few programs, and padding changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import pab_compile
from helpers.eager_code import WIDTH, Attention, Dit
from helpers.service import watched
from pab_compile.errors import OptionError, PabError

STEPS = 8
MULTIPLE = 8


class Masked(Dit):
    """Cross attention that leaves out words, if a mask says so."""

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        context_mask: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        x = self.patch(x) + self.embed(timestep)
        x = x + self.full(x, x)
        return self.last(x + self.attend(self.cross, x, context, context_mask))

    def attend(
        self, layer: Attention, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        q, k, v = layer.query(x)[:, None], layer.key(y)[:, None], layer.value(y)[:, None]
        bias = None if mask is None else mask[:, None, None].bool()
        return layer.back(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)[:, 0])


class ReadsPadding(Masked):
    """Its mask means something else: it only scales the words."""

    def attend(
        self, layer: Attention, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        if mask is not None:
            y = y * (0.5 + 0.5 * mask[..., None]).to(y.dtype)
        return super().attend(layer, x, y, None)


class CountsPadding(Masked):
    """It zeroes the masked words, and then takes the mean over all."""

    def attend(
        self, layer: Attention, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        y = y if mask is None else y * mask[..., None]
        return super().attend(layer, x, y, mask) + layer.value(y).mean(1, keepdim=True)


class TwoMasks(Masked):
    """Two inputs may be the mask of the prompt."""

    def forward(  # type: ignore[override]
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        other_mask: torch.Tensor | None = None,
        context_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return super().forward(x, timestep, context, context_mask)


def make(kind: type[Masked]) -> Masked:
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)


def generate(model: torch.nn.Module, words: int, **more: Any) -> torch.Tensor:
    """The predictions of a generation, in a function of its own as a sampler is."""
    dtype = next(model.parameters()).dtype
    x, context = (
        torch.randn(1, n, c, generator=torch.Generator().manual_seed(words)).to(dtype)
        for n, c in ((12, 4), (words, WIDTH))
    )
    found = []
    with torch.no_grad():
        for timestep in torch.linspace(1000, 100, STEPS):
            found.append(model(x, timestep[None], context=context, **more))
            x = x - 0.1 * found[-1][..., :4]
    return torch.stack(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_of_one_bucket_share_a_program(dtype: torch.dtype) -> None:
    model = make(Masked).to(dtype)
    reused = {}
    handle = pab_compile.enable(model, "quality", inner="eager")
    for words in (3, 5, 7, 11):
        reused[words] = generate(model, words)
    handle.disable()
    handle = pab_compile.enable(
        model, "quality", inner="eager", dynamic=False, buckets={"context": MULTIPLE}
    )
    with watched() as seen:
        for words in (3, 5, 7, 11):
            is_given = words == 5
            mask = {"context_mask": torch.ones(1, words, dtype=torch.int64)} if is_given else {}
            actual = generate(model, words, **mask)
            close = 1e-5 if dtype == torch.float32 else 0.03
            assert (actual - reused[words]).abs().max() <= close * reused[words].abs().max()
            assert sum(handle.stats()["model"].reused.values()) > 0
    sizes = [size for graph in seen.graphs.values() for size in graph.captures]
    # The mask of 5 words is of another type, which is a graph of its own.
    assert sorted(size.count("1x8") for size in sizes) == [0, 2, 2]
    handle.disable()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ReadsPadding, "its result reads the padding"),
        (CountsPadding, "depends on how many tokens are masked"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_that_does_not_hide_the_padding_is_refused(
    kind: type[Masked], words: str, dtype: torch.dtype
) -> None:
    model = make(kind).to(dtype)
    handle = pab_compile.enable(model, inner="eager", buckets={"context": MULTIPLE})
    with pytest.raises(PabError, match=f"masked by 'context_mask'.*{words}"):
        generate(model, 5)
    handle.disable()


def test_what_cannot_be_padded_is_refused() -> None:
    for wrong in (3, {"context": 0}, {"context": (8, 3)}, {"context": True}):
        with pytest.raises(OptionError, match="buckets"):
            pab_compile.enable(make(Masked), inner="eager", buckets=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no input of the model is called like a mask"):
        pab_compile.enable(Dit(), inner="eager", buckets={"context": 8})
    with pytest.raises(OptionError, match=r"'prompt', which is no input.*context"):
        pab_compile.enable(make(Masked), inner="eager", options={"buckets": {"prompt": 8}})
    model = make(TwoMasks)
    handle = pab_compile.enable(model, inner="eager", buckets={"context": 8})
    with pytest.raises(OptionError, match="2 inputs may be its mask: other_mask, context_mask"):
        generate(model, 5)
    handle.disable()
    handle = pab_compile.enable(model, inner="eager", buckets={"context": (8, "context_mask")})
    generate(model, 5)
    with pytest.raises(OptionError, match=r"has the shape \(1, 4\) instead of \(1, 5\)"):
        generate(model, 5, context_mask=torch.ones(1, 4))
    handle.disable()


def test_a_prompt_is_padded_once_and_again_when_it_changes() -> None:
    model = make(Masked)
    handle = pab_compile.enable(model, "off", inner="eager", buckets={"context": MULTIPLE})
    given: list[torch.Tensor] = []
    whole = model.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        given.append(kwargs["context"])
        return whole(*args, **kwargs)

    model.forward = forward  # type: ignore[method-assign]
    context = torch.randn(1, 5, WIDTH)
    torch._dynamo.config.disable, before = True, torch._dynamo.config.disable
    try:
        for _ in range(2):
            model(torch.zeros(1, 2, 4), torch.ones(1), context)
        context.mul_(2)
        model(torch.zeros(1, 2, 4), torch.ones(1), context)
    finally:
        torch._dynamo.config.disable = before
    first, second, third = given[3:]  # after those of the check
    assert first is second
    assert torch.equal(third[:, :5], context)
    assert third.shape[1] == MULTIPLE
    handle.disable()
