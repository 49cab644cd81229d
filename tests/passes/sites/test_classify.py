"""Token mixers: what is found as one, and which kind it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from helpers.golden import check_inline
from helpers.graphs import traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.classify import find_mixers
from pab_compile.passes.sites.mixer import Mixer, kind_of

attend = F.scaled_dot_product_attention


def mixers(function: Callable[..., Any], **inputs: Any) -> tuple[Mixer, ...]:
    graph_module = traced(function, **inputs)
    return find_mixers(graph_module, infer_axes(graph_module))


def kinds(function: Callable[..., Any], **inputs: Any) -> str:
    """``kind: query axes < key axes`` of every mixer."""
    return "; ".join(
        f"{m.kind}: {'*'.join(m.query_axes) or '-'} < {'*'.join(m.key_axes) or '-'}"
        for m in mixers(function, **inputs)
    )


def tokens(latents: torch.Tensor) -> torch.Tensor:
    """``[b, t*h*w, c]``."""
    return latents.permute(0, 2, 3, 4, 1).flatten(1, 3)


def frames(latents: torch.Tensor) -> torch.Tensor:
    """``[b*t, h*w, c]``."""
    return latents.permute(0, 2, 3, 4, 1).flatten(0, 1).flatten(1, 2)


def places(latents: torch.Tensor) -> torch.Tensor:
    """``[b*h*w, t, c]``."""
    return latents.permute(0, 3, 4, 2, 1).flatten(0, 2)


def heads(x: torch.Tensor) -> torch.Tensor:
    """Two heads: ``[b, 2, tokens, c/2]``."""
    return x.unflatten(-1, (2, -1)).transpose(1, 2)


# -- kinds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "key", "kind"),
    [
        ("h w", "h w", "spatial"),
        ("w", "w", "spatial"),
        ("t", "t", "temporal"),
        ("t h w", "t h w", "full"),
        ("t w", "t w", "full"),
        ("s", "s", "full"),
        ("text t h w", "text t h w", "joint"),
        ("t h w", "text t h w", "joint"),
        ("s text", "s text", "joint"),
        ("t h w", "text", "cross"),
        ("s", "image", "cross"),
        ("s image", "text", "cross"),
        ("text", "text", "text"),
        ("image", "image", "other"),
        ("text", "image", "other"),
        ("text s", "text", "cross"),
        ("text", "text s", "other"),
        ("h w", "t", "other"),
        ("h w", "t h w", "other"),
        ("h w", "", "other"),
        ("", "h w", "other"),
        ("", "", "other"),
    ],
)
def test_kind_by_the_axes_of_queries_and_keys(query: str, key: str, kind: str) -> None:
    assert kind_of(query.split(), key.split()) == kind


def test_attention_within_frames_places_and_the_whole_video() -> None:
    def model(latents):
        x, y, z = frames(latents), places(latents), heads(tokens(latents))
        return attend(x, x, x), attend(y, y, y), attend(z, z, z)

    assert kinds(model) == "spatial: h*w < h*w; temporal: t < t; full: t*h*w < t*h*w"


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4, 4), (1, 4, 4, 4, 4), (2, 4, 1, 4, 4)])
def test_kinds_do_not_depend_on_sizes(sizes: tuple[int, ...]) -> None:
    def model(latents, prompt):
        x, y = frames(latents), places(latents)
        text = prompt.repeat_interleave(latents.shape[2], 0)
        return attend(x, x, x), attend(y, y, y), attend(x, text, text)

    assert (
        kinds(model, latents=sizes, prompt=(sizes[0], 16, 4))
        == "spatial: h*w < h*w; temporal: t < t; cross: h*w < text"
    )


def test_attention_in_windows_of_a_frame_is_spatial() -> None:
    def model(latents):
        x = latents.view(2, 4, 3, 2, 4, 3, 4).permute(0, 2, 3, 5, 4, 6, 1).reshape(36, 16, 4)
        return attend(x, x, x)

    assert kinds(model) == "spatial: h*w < h*w"


def test_attention_along_rows_is_spatial() -> None:
    def model(latents):
        x = latents.permute(0, 2, 3, 4, 1)
        return attend(x, x, x)

    assert kinds(model) == "spatial: w < w"


def test_attention_in_an_image_model_is_spatial() -> None:
    def model(latents):
        x = latents.flatten(2).transpose(1, 2)
        return attend(x, x, x)

    assert kinds(model, latents=(2, 4, 8, 12)) == "spatial: h*w < h*w"


def test_video_and_text_together_are_joint_in_either_order() -> None:
    def model(latents, prompt):
        x, y = torch.cat([prompt, tokens(latents)], 1), torch.cat([tokens(latents), prompt], 1)
        return attend(x, x, x), attend(y, y, y), attend(x[:, 7:], x, x)

    assert kinds(model) == (
        "joint: text*t*h*w < text*t*h*w; joint: t*h*w*text < t*h*w*text; joint: t*h*w < text*t*h*w"
    )


def test_keys_from_another_input_are_cross() -> None:
    def model(latents, prompt, audio):
        x = heads(tokens(latents))
        return attend(x, heads(prompt), heads(prompt)), attend(x, heads(audio), heads(audio))

    assert kinds(model, audio=(2, 5, 4)) == "cross: t*h*w < text; cross: t*h*w < audio"


def test_one_part_of_concatenated_prompts_is_that_part() -> None:
    def model(latents, prompt, image):
        context = torch.cat([image, prompt], 1) * 2
        x, first, second = tokens(latents), context[:, :5], context[:, 5:]
        return attend(x, first, first) + attend(x, second, second)

    assert kinds(model, image=(2, 5, 4)) == "cross: t*h*w < image; cross: t*h*w < text"


def test_text_alone_and_learned_queries() -> None:
    def model(latents, prompt, w_queries):
        text = attend(prompt, prompt, prompt)
        return attend(w_queries.expand(2, 9, 4), text, text), latents * 2

    found = kinds(model, w_queries=(1, 9, 4))
    assert found == "text: text < text; other: - < text"


def test_a_batch_folded_into_the_queries_is_ignored() -> None:
    def model(latents, prompt):
        x, text = tokens(latents).flatten(0, 1)[None], prompt.flatten(0, 1)[None]
        return attend(x, text, text)

    assert kinds(model) == "cross: t*h*w < text"


def test_packed_tokens_are_full_or_frame_major_if_split() -> None:
    def model(latents, w_in):
        x = F.linear(latents, w_in)
        y = x.unflatten(1, (3, 96))
        z = y.transpose(1, 2)
        return attend(x, x, x), attend(y, y, y), attend(z, z, z)

    found = mixers(model, latents=(2, 288, 4), w_in=(4, 4))
    check_inline(
        "\n".join(f"{m.kind}: {m.reason.partition(' (')[0]}" for m in found),
        """\
    full: queries and keys both run along t*h*w
    spatial: queries and keys both run along h*w; the packed tokens are taken as frame-major
    temporal: queries and keys both run along t; the packed tokens are taken as frame-major
    """,
    )


# -- mechanisms --------------------------------------------------------------------------------


def ops(mixer: Mixer) -> str:
    return " ".join(ir.op_name(node) for node in mixer.nodes)


def test_multi_output_forms_end_at_their_first_output() -> None:
    def model(latents):
        x = heads(frames(latents))
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(x, x, x)[0]

    (found,) = mixers(model)
    assert (found.kind, found.mechanism) == ("spatial", "sdpa")
    assert ops(found) == "_scaled_dot_product_flash_attention_for_cpu getitem"


@pytest.fixture
def flash_op() -> Any:
    """A registered attention whose layout is ``[batch, tokens, heads, channels]``."""
    with torch.library._scoped_library("pab_test", "FRAGMENT") as library:
        library.define("flash_attn_forward(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")
        library.impl(
            "flash_attn_forward",
            lambda q, k, v: (torch.empty_like(q), q.new_empty(q.shape[:-1])),
            "CompositeExplicitAutograd",
        )
        yield torch.ops.pab_test.flash_attn_forward


def test_custom_ops_tell_tokens_from_heads_by_their_axes(flash_op: Any) -> None:
    def model(latents, prompt, w_in):
        x, y = (F.linear(a, w_in).unflatten(-1, (12, -1)) for a in (frames(latents), prompt))
        return flash_op(x, x, x)[0], flash_op(x, y.repeat(3, 1, 1, 1), y.repeat(3, 1, 1, 1))[0]

    found = mixers(model, w_in=(24, 4))
    assert [(m.kind, m.mechanism, ops(m)) for m in found] == [
        ("spatial", "sdpa", "flash_attn_forward getitem"),
        ("cross", "sdpa", "flash_attn_forward getitem"),
    ]


def test_softmax_by_hand_with_scale_mask_and_casts() -> None:
    def model(latents, prompt, mask):
        q, k = heads(tokens(latents)), heads(prompt)
        scores = (q @ k.transpose(-1, -2)) * 0.5
        scores = scores.masked_fill(mask[:, None, None] == 0, -1e9).double()
        return torch.dropout(scores.softmax(-1).float(), 0.1, False) @ k

    (found,) = mixers(model, mask=(2, 7))
    assert (found.kind, found.mechanism) == ("cross", "softmax")
    assert ops(found).startswith("matmul mul ") and ops(found).endswith(" matmul")
    assert "softmax" in ops(found)


def test_softmax_by_hand_through_einsum_and_through_folded_heads() -> None:
    def model(latents):
        x, y = frames(latents), heads(places(latents))
        a = torch.einsum("bid,bjd->bij", x, x).softmax(-1)
        q = y.flatten(0, 1)
        p = torch.bmm(q, q.transpose(1, 2)).unflatten(0, (-1, 2)).softmax(-1)
        return torch.einsum("bij,bjd->bid", a, x), torch.bmm(p.flatten(0, 1), q)

    found = mixers(model)
    assert [(m.kind, m.mechanism) for m in found] == [
        ("spatial", "softmax"),
        ("temporal", "softmax"),
    ]


def test_softmax_written_out_as_exp_and_sum() -> None:
    def model(latents):
        x = frames(latents)
        scores = x @ x.transpose(1, 2)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        return (weights / weights.sum(-1, keepdim=True)) @ x

    (found,) = mixers(model)
    assert (found.kind, found.mechanism) == ("spatial", "softmax")


def test_scores_may_pass_another_function_than_a_softmax() -> None:
    def model(latents):
        x = frames(latents)
        scores = x @ x.transpose(1, 2)
        return torch.relu(scores).square() @ x + torch.sigmoid(scores) @ x

    assert [(m.kind, m.mechanism) for m in mixers(model)] == [("spatial", "linear")] * 2


def test_linear_attention_in_both_orders_of_its_products() -> None:
    def model(latents, w_q, w_k):
        x = tokens(latents)
        q, k = F.linear(x, w_q).relu(), F.linear(x, w_k).relu()
        keys_first = q @ (k.transpose(1, 2) @ x)
        scores_first = (q @ k.transpose(1, 2)) @ x
        return keys_first / (q @ k.sum(1)[:, :, None]), scores_first

    found = mixers(model, w_q=(6, 4), w_k=(6, 4))
    assert [(m.kind, m.mechanism, m.query_axes, ops(m)) for m in found] == [
        ("full", "linear", ("t", "h", "w"), "matmul matmul"),
        ("full", "linear", ("t", "h", "w"), "matmul matmul"),
    ]


def test_keys_normalised_over_tokens_are_linear_attention() -> None:
    def model(latents, w_q, w_k):
        x = tokens(latents)
        q, k = F.linear(x, w_q).softmax(-1), F.linear(x, w_k).softmax(1)
        return q @ (k.transpose(1, 2) @ x)

    (found,) = mixers(model, w_q=(6, 4), w_k=(6, 4))
    assert (found.kind, found.mechanism) == ("full", "linear")


def test_pooling_by_softmax_is_other() -> None:
    def model(latents, prompt, w_score):
        weights = F.linear(prompt, w_score).softmax(1)
        return latents * (weights.transpose(1, 2) @ prompt).mean()

    (found,) = mixers(model, w_score=(1, 4))
    assert (found.kind, found.mechanism, found.key_axes) == ("other", "softmax", ("text",))


def test_attention_to_learned_queries_that_looked_at_a_prompt_is_cross() -> None:
    def model(latents, prompt, w_in, w_queries):
        x = tokens(latents) @ w_in
        looked = F.softmax((w_queries * prompt.mean()) @ prompt.mT, -1) @ prompt
        seen = F.layer_norm(looked, (4,))
        return F.softmax(x @ seen.mT, -1) @ seen

    shapes = {"w_in": (4, 4), "w_queries": (9, 4)}
    assert kinds(model, **shapes) == "other: - < text; cross: t*h*w < -"


def test_attention_to_unnamed_tokens_made_of_the_latents_is_other() -> None:
    def model(latents, w_in, w_queries):
        x = tokens(latents) @ w_in
        looked = F.softmax((w_queries * x.mean()) @ x.mT, -1) @ x
        seen = F.layer_norm(looked, (4,))
        return F.softmax(x @ seen.mT, -1) @ seen

    shapes = {"w_in": (4, 4), "w_queries": (9, 4)}
    assert kinds(model, **shapes) == "other: - < t*h*w; other: t*h*w < -"


def test_softmax_by_hand_over_learned_tokens_is_cross() -> None:
    def model(latents, prompt, w_tokens):
        x = tokens(latents)
        learned = w_tokens + 0 * prompt.mean(1, keepdim=True)
        return (x @ learned.transpose(1, 2)).softmax(-1) @ learned

    (found,) = mixers(model, w_tokens=(1, 9, 4))
    assert (found.kind, found.mechanism, found.key_axes) == ("cross", "softmax", ())


def test_layers_without_attention_are_no_mixers() -> None:
    def model(latents, prompt, w_up, w_down, w_tokens, w_conv):
        x = F.linear(F.gelu(F.linear(tokens(latents), w_up)), w_down)
        x = x + F.linear(x.transpose(1, 2), w_tokens).transpose(1, 2)  # a token-mixing MLP
        gate = F.linear(x.softmax(-1), w_down.new_ones(4, 4))
        return x * gate * prompt.mean(1, keepdim=True), F.conv3d(latents, w_conv, padding=1)

    sizes = {"w_up": (8, 4), "w_down": (4, 8), "w_tokens": (288, 288)}
    assert mixers(model, w_conv=(4, 4, 3, 3, 3), **sizes) == ()


def test_attention_upon_attention_is_two_mixers() -> None:
    def model(latents):
        x = frames(latents)
        for _ in range(2):
            x = (x @ x.transpose(1, 2)).softmax(-1) @ x
        return x

    assert [(m.kind, m.mechanism) for m in mixers(model)] == [("spatial", "softmax")] * 2


def test_the_reason_names_axes_and_mechanism() -> None:
    def model(latents, prompt, w_queries):
        x, y = tokens(latents), torch.cat([prompt, tokens(latents)], 1)
        by_hand = (x @ prompt.transpose(1, 2)).softmax(-1) @ prompt
        learned = attend(w_queries.expand(2, 9, 4), x, x)
        return attend(y, y, y), by_hand, learned

    found = mixers(model, w_queries=(1, 9, 4))
    check_inline(
        "\n".join(m.reason.partition(" (")[0] for m in found),
        """\
    softmax by hand: queries run along t*h*w, keys along another source, text
    queries run along 9 tokens without a name, keys along t*h*w: no kind fits
    video and other tokens in one: queries along text+t*h*w, keys along text+t*h*w
    """,
    )
