"""Flex attention: an op that is given graphs, and masks that are made by vmap."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import pab_compile
from helpers.broken_forwards import (
    HEADS,
    RANGES,
    SHAPE,
    WIDTH,
    BrokenDiT,
    HookOracle,
    SelfAttention,
    check_against_oracle,
    compiled,
    draw,
    noise,
    prompts,
    table,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
FLEX_KINDS = {"cross": 2, "spatial": 1, "temporal": 1}


def nearby(batch, head, query, key):  # type: ignore[no-untyped-def]
    return (query - key).abs() < 3


def sloped(score, batch, head, query, key):  # type: ignore[no-untyped-def]
    return score - 0.3 * (head + 1) * (query - key).abs()


class FlexAttention(SelfAttention):
    """Attention whose scores slope, or with a mask that is made before or inside the call.

    Args:
        how: ``plain``, ``scores``, or a mask: ``before``, ``inside``, or ``of values``, which hides
            as many keys of each row as its values say.
        num_tokens: number of tokens.
    """

    def __init__(self, how: str, num_tokens: int) -> None:
        super().__init__()
        self.how = how
        self.mask = self.make_mask(num_tokens) if how == "before" else None

    def make_mask(self, num_tokens: int) -> BlockMask:
        return create_block_mask(nearby, None, None, num_tokens, num_tokens, device="cpu")

    def mask_of(self, x: torch.Tensor) -> BlockMask:
        rows, tokens, _ = x.shape
        lengths = tokens - (x[:, 0, 0] > 0).long()

        def is_seen(batch, head, query, key):  # type: ignore[no-untyped-def]
            return key < lengths[batch]

        return create_block_mask(is_seen, rows, None, tokens, tokens, device="cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.make_mask(tokens) if self.how == "inside" else self.mask
        mask = self.mask_of(x) if self.how == "of values" else mask
        score = sloped if self.how == "scores" else None
        mixed = flex_attention(q, k, v, score_mod=score, block_mask=mask)
        return self.out(mixed.transpose(1, 2).reshape(rows, tokens, WIDTH))  # type: ignore[union-attr]


class FlexDiT(BrokenDiT):
    """A video DiT with flex attention within frames and places."""

    def __init__(self, how: str, places: tuple[str, ...] = ()) -> None:
        super().__init__(places)
        self.first.spatial = FlexAttention(how, SHAPE[3] * SHAPE[4])
        self.second.temporal = FlexAttention(how, SHAPE[2])


@pytest.mark.sample("before", "of values")
@pytest.mark.parametrize("how", ["plain", "scores", "before", "inside", "of values"])
def test_flex_attention_is_found_and_reused_as_by_hooks(how: str) -> None:
    model = draw(FlexDiT, how)
    inputs = {"latents": noise(*SHAPE), "timestep": torch.tensor([5.0, 5.0]), **prompts(1)["lane1"]}
    assert pab_compile.explain(model, **inputs).counts() == FLEX_KINDS
    check_against_oracle(
        compiled(model, RANGES), HookOracle(model, RANGES), SHAPE, prompts(1), table(5)
    )


@pytest.mark.long
def test_a_forward_of_several_graphs_hands_the_graphs_of_its_ops_on() -> None:
    model = draw(FlexDiT, "scores", ("blocks",))
    fast = compiled(model, RANGES)
    check_against_oracle(fast, HookOracle(model, RANGES), SHAPE, prompts(1), table())
    assert pab_compile.stats(fast).reused["temporal"]
