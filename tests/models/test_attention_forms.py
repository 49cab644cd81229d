"""Forms of attention that models write by hand: found as what they were built as, and reused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pab_compile
from helpers.broken_forwards import CHANNELS, SHAPE, WIDTH, compiled, draw, noise, sinusoids, table
from helpers.latte import assert_different, assert_same

attend = F.scaled_dot_product_attention
RANGES = {"spatial": 2, "temporal": 2, "full": 2, "joint": 2, "cross": 2}
BATCH, _, FRAMES, HEIGHT, COLUMNS = SHAPE
TEXT, HISTORY = 7, 5
Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Video ``[b, t, h, w, c]``, text ``[b, n, c]``, earlier frames ``[b, n, h, w, c]`` -> video."""


# -- windows -----------------------------------------------------------------------------------


def windows(x: torch.Tensor, frames: int, rows: int, columns: int) -> torch.Tensor:
    """Attention within windows of a video."""
    b, t, h, w, c = x.shape
    y = x.view(b, t // frames, frames, h // rows, rows, w // columns, columns, c)
    y = y.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, frames * rows * columns, c)
    y = attend(y, y, y)
    y = y.view(b, t // frames, h // rows, w // columns, frames, rows, columns, c)
    return y.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape)


def windows_of_a_frame(x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    return windows(x, 1, 2, 2)


def shifted_windows_of_a_frame(
    x: torch.Tensor, text: torch.Tensor, past: torch.Tensor
) -> torch.Tensor:
    y = windows(torch.roll(x, (-1, -1), (2, 3)), 1, 2, 2)
    return torch.roll(y, (1, 1), (2, 3))


def shifted_windows_of_the_video(
    x: torch.Tensor, text: torch.Tensor, past: torch.Tensor
) -> torch.Tensor:
    y = windows(torch.roll(x, (-1, -1, -1), (1, 2, 3)), 3, 2, 2)
    return torch.roll(y, (1, 1, 1), (1, 2, 3))


# -- earlier frames ----------------------------------------------------------------------------


def over_earlier_frames_too(
    x: torch.Tensor, text: torch.Tensor, past: torch.Tensor
) -> torch.Tensor:
    both = torch.cat([past, x], 1).flatten(1, 3)
    return attend(x.flatten(1, 3), both, both).view(x.shape)


def over_earlier_frames_of_a_place(
    x: torch.Tensor, text: torch.Tensor, past: torch.Tensor
) -> torch.Tensor:
    y = x.permute(0, 2, 3, 1, 4)
    both = torch.cat([past, x], 1).permute(0, 2, 3, 1, 4)
    return attend(y, both, both).permute(0, 3, 1, 2, 4)


# -- sample by sample --------------------------------------------------------------------------


def sample_by_sample(x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    y = x.flatten(1, 3)
    return torch.cat([attend(one, one, one) for one in y.split(1)]).view(x.shape)


def sample_by_sample_with_its_prompt(
    x: torch.Tensor, text: torch.Tensor, past: torch.Tensor
) -> torch.Tensor:
    y, found = x.flatten(1, 3), []
    for number, length in enumerate((TEXT, TEXT - 2)):  # prompts without their padding
        one = torch.cat([y[number : number + 1], text[number : number + 1, :length]], 1)
        found.append(F.pad(attend(one, one, one), (0, 0, 0, TEXT - length)))
    return torch.cat(found)[:, : y.shape[1]].reshape(x.shape)


# -- by hand -----------------------------------------------------------------------------------


def by_baddbmm(x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    y = x.permute(0, 2, 3, 1, 4).flatten(0, 2)
    scores = torch.baddbmm(y.new_zeros(1, 1, 1), y, y.mT, beta=0, alpha=WIDTH**-0.5)
    y = torch.bmm(scores.softmax(-1), y).view(BATCH, HEIGHT, COLUMNS, FRAMES, WIDTH)
    return y.permute(0, 3, 1, 2, 4)


def by_einsum_in_place(x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    y = x.flatten(2, 3)
    scores = torch.einsum("btic,btjc->btij", y, y)
    scores /= 4
    scores -= scores.amax(-1, keepdim=True)
    weights = scores.exp_()
    weights /= weights.sum(-1, keepdim=True)
    return torch.einsum("btij,btjc->btic", weights, y).view(x.shape)


def by_matmul_of_heads(x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
    q, k = (y.unflatten(-1, (2, -1)).transpose(-2, -3) for y in (x.flatten(1, 3), text))
    weights = torch.softmax((q @ k.mT).float() * 0.35, dim=-1).type_as(q)
    return (weights @ k).transpose(1, 2).reshape(x.shape)


KINDS = {
    windows_of_a_frame: "spatial",
    shifted_windows_of_a_frame: "spatial",
    shifted_windows_of_the_video: "full",
    over_earlier_frames_too: "full",
    over_earlier_frames_of_a_place: "temporal",
    sample_by_sample: "full",
    sample_by_sample_with_its_prompt: "joint",
    by_baddbmm: "temporal",
    by_einsum_in_place: "spatial",
    by_matmul_of_heads: "cross",
}


class Attention(nn.Module):
    """A form of attention between two projections."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        self.into, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, text: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        return self.out(self.form(self.into(x), text, past))


class OneBlock(nn.Module):
    """A video DiT of one attention."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.embed, self.text = nn.Linear(CHANNELS, WIDTH), nn.Linear(12, WIDTH)
        self.time, self.gates = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.attention, self.last = Attention(form), nn.Linear(WIDTH, CHANNELS)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
        history: torch.Tensor,
    ) -> torch.Tensor:
        x, past = (self.embed(y.permute(0, 2, 3, 4, 1)) for y in (latents, history))
        emb = F.silu(self.time(sinusoids(timestep)))
        shift, scale, gate = self.gates(emb)[:, None, None, None].chunk(3, -1)
        y = F.layer_norm(x, (WIDTH,)) * (1 + scale) + shift
        x = x + gate * self.attention(y, self.text(prompt), past)
        return self.last(x).permute(0, 4, 1, 2, 3)


def every_second_step(attention: nn.Module) -> None:
    """Let an attention repeat its last output at every other call."""
    compute, outputs = attention.forward, []

    def forward(*args: torch.Tensor) -> torch.Tensor:
        outputs.append(outputs[-1] if len(outputs) % 2 else compute(*args))
        return outputs[-1]

    attention.forward = forward  # type: ignore[method-assign]


@pytest.mark.sample(
    "windows_of_a_frame",
    "over_earlier_frames_too",
    "sample_by_sample_with_its_prompt",
    "by_baddbmm",
    "by_matmul_of_heads",
)
@pytest.mark.parametrize("form", KINDS, ids=lambda form: form.__name__)
def test_a_form_of_attention_is_one_site_of_its_kind_and_reused_as_by_hooks(form: Form) -> None:
    model, hooked = draw(OneBlock, form), draw(OneBlock, form)
    every_second_step(hooked.attention)  # type: ignore[arg-type]
    fast = compiled(model, RANGES)
    held = {"prompt": noise(BATCH, TEXT, 12), "history": noise(BATCH, 4, HISTORY, HEIGHT, COLUMNS)}
    eager, ours, theirs = [], [], []
    for step, timestep in enumerate(table(4)):
        given = {"latents": noise(*SHAPE, seed=step), "timestep": timestep.expand(BATCH), **held}
        for call, results in ((model, eager), (hooked, theirs), (fast, ours)):
            results.append(call(**given))
    assert_different(torch.stack(eager), torch.stack(theirs))
    assert_same(torch.stack(ours), torch.stack(theirs))
    stats = pab_compile.stats(fast)
    for counts in (stats.computed, stats.reused):
        assert +Counter(counts) == {KINDS[form]: 2}
