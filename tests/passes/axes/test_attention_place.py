"""Ops of any name that stand where an attention stands, and ops that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.graphs import traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.sites.classify import find_mixers

WEIGHTS = {"w_in": (24, 4), "w_out": (4, 24), "w_one": (4, 4), "w_down": (2, 4), "w_up": (24, 2)}


@pytest.fixture(autouse=True)
def ops() -> Iterator[None]:
    """``third`` reads three tensors, ``pair`` yields two; both say nothing of what they do."""
    with torch.library._scoped_library("pab_test", "FRAGMENT") as library:
        key = "CompositeExplicitAutograd"
        library.define("third(Tensor q, Tensor k, Tensor v, float scale=1.0) -> Tensor")
        library.impl("third", lambda q, k, v, scale=1.0: torch.empty_like(q), key)
        library.define("pair(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")
        library.impl("pair", lambda q, k, v: (torch.empty_like(q), q.new_empty(q.shape[:-1])), key)
        yield


def third(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.ops.pab_test.third(q, k, v)


def tokens(latents: torch.Tensor) -> torch.Tensor:
    """``[b, t*h*w, c]``."""
    return latents.permute(0, 2, 3, 4, 1).flatten(1, 3)


def heads(x: torch.Tensor, weight: torch.Tensor, num: int = 6) -> torch.Tensor:
    """``[b, tokens, heads, c]``."""
    return F.linear(x, weight).unflatten(-1, (num, -1))


def found(model: Callable[..., Any]) -> list[str]:
    graph_module = traced(model, **WEIGHTS)
    table = infer_axes(graph_module)
    return [f"{m.kind} {m.mechanism}" for m in find_mixers(graph_module, table)]


def test_heads_after_the_tokens_or_before_them() -> None:
    def model(latents, w_in, w_out):
        x = tokens(latents)
        q, k, v = (heads(x, w_in) for _ in range(3))
        after = F.linear(third(q, k, v).flatten(2), w_out)
        before = third(*(y.transpose(1, 2) for y in (q, k, v)))
        return after, F.linear(before.transpose(1, 2).flatten(2), w_out)

    assert found(model) == ["full sdpa", "full sdpa"]


def test_a_single_head_before_the_tokens_and_a_second_output() -> None:
    def model(latents, w_in, w_out):
        q, k, v = (F.linear(tokens(latents), w_in)[:, None] for _ in range(3))
        return F.linear(torch.ops.pab_test.pair(q, k, v)[0][:, 0], w_out)

    assert found(model) == ["full sdpa"]


def test_keys_of_a_prompt() -> None:
    def model(latents, prompt, w_in, w_out):
        q, k, v = (heads(x, w_in) for x in (tokens(latents), prompt, prompt))
        return F.linear(third(q, k, v).flatten(2), w_out)

    assert found(model) == ["cross sdpa"]


def test_rotated_queries_that_stand_beside_those_of_the_prompt() -> None:
    def model(latents, prompt, w_in, w_out):
        def both() -> torch.Tensor:
            x = torch.cat([heads(prompt, w_in), heads(tokens(latents), w_in)], 1)
            angles = torch.arange(x.shape[1] * 4.0).view(1, -1, 1, 4)
            left, right = x.chunk(2, -1)
            return x * angles.cos() + torch.cat([-right, left], -1) * angles.sin()

        y = third(both(), both(), both()).flatten(2)
        return F.linear(y[:, 7:], w_out), F.linear(y[:, :7], w_out)

    assert found(model) == ["joint sdpa"]


def test_projections_with_an_adapter_and_a_gate_before_the_last() -> None:
    def model(latents, w_in, w_out, w_down, w_up):
        x = tokens(latents)

        def projected() -> torch.Tensor:
            more = F.linear(F.linear(x, w_down), w_up)
            return (F.linear(x, w_in) + 2 * more).unflatten(-1, (6, -1))

        y = third(projected(), projected(), projected()).flatten(2)
        return F.linear(y * F.linear(x, w_in).sigmoid(), w_out)

    assert found(model) == ["full sdpa"]


def test_the_note_says_what_the_guess_rests_on() -> None:
    def model(latents, w_in, w_out):
        q, k, v = (heads(tokens(latents), w_in) for _ in range(3))
        return F.linear(third(q, k, v).flatten(2), w_out)

    graph_module = traced(model, **WEIGHTS)
    table = infer_axes(graph_module)
    (mixer,) = find_mixers(graph_module, table)
    assert [note for note in table.notes if "pab_test.third.default is not known" in note]
    assert "pab_test.third.default is taken for an attention by its place" in mixer.reason


def sum_before_projection(latents, w_in, w_out):
    x = tokens(latents)
    q, k, v = (heads(x, w_in) for _ in range(3))
    return F.linear(third(q, k, v).flatten(2) + F.linear(x, w_in), w_out)


def no_projection_after(latents, w_in):
    q, k, v = (heads(tokens(latents), w_in) for _ in range(3))
    return third(q, k, v).flatten(2)


def residual_stream(latents, w_one, w_out):
    x = tokens(latents)
    y = x + F.linear(x, w_one)
    q, k, v = (z.unflatten(-1, (2, 2)) for z in (y, F.linear(y, w_one), F.linear(y, w_one)))
    return F.linear(third(q, k, v).flatten(2), w_one)


def no_heads(latents, w_in, w_out):
    q, k, v = (F.linear(tokens(latents), w_in) for _ in range(3))
    return F.linear(third(q, k, v), w_out)


def one_tensor_three_times(latents, w_in, w_out):
    q = heads(tokens(latents), w_in)
    return F.linear(third(q, q, q).flatten(2), w_out)


def other_heads(latents, w_in, w_out):
    q, k, v = (heads(tokens(latents), w_in, num) for num in (6, 6, 4))
    return F.linear(third(q, k, v).flatten(2), w_out)


@pytest.mark.parametrize(
    "model",
    [
        sum_before_projection,
        no_projection_after,
        residual_stream,
        no_heads,
        one_tensor_three_times,
        other_heads,
    ],
    ids=lambda model: model.__name__,
)
def test_an_op_in_another_place_stays_unknown(model: Callable[..., Any]) -> None:
    assert "full sdpa" not in found(model)
    assert set(found(model)) <= {"other opaque"}
