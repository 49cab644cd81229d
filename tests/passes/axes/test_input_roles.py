"""Which input is a prompt, and which is denoised together with the latents."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from helpers.graphs import returned, traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir

attend = F.scaled_dot_product_attention
PICTURE = (2, 4, 8, 12)


def axes_of(graph_module: fx.GraphModule) -> tuple[AxisTable, list[str]]:
    table = infer_axes(graph_module)
    return table, [", ".join(table.names(node)) for node in returned(graph_module)]


def siblings(graph_module: fx.GraphModule) -> tuple[str, list[str]]:
    table = infer_axes(graph_module)
    return ir.source(table.latents), [ir.source(node) for node in table.siblings]


def test_a_prompt_of_several_layers_is_text_though_its_rank_is_the_latents() -> None:
    def model(latents, prompt, w_in, w_text):
        return F.conv2d(latents, w_in), F.linear(prompt, w_text), F.linear(prompt[:, 0], w_text)

    shapes = {"latents": PICTURE, "prompt": (2, 3, 7, 5), "w_in": (4, 4, 1, 1), "w_text": (6, 5)}
    table, outputs = axes_of(traced(model, **shapes))
    assert outputs == ["b, c, h, w", "b, text, text, c", "b, text, c"]
    assert dict(table.sources) == {"prompt": "text"}


def test_a_control_picture_is_no_text_whatever_else_its_name_says() -> None:
    def model(latents, control_context, w_in):
        return F.conv2d(latents, w_in), F.conv2d(control_context, w_in)

    shapes = {"latents": PICTURE, "control_context": (2, 4, 5, 6), "w_in": (4, 4, 1, 1)}
    assert axes_of(traced(model, **shapes))[1] == ["b, c, h, w", "b, c, h, w"]


def test_a_prompt_without_a_batch_has_tokens() -> None:
    def model(latents, prompt, w_in):
        y = F.linear(prompt, w_in)
        return latents + y.mean(), y

    shapes = {"prompt": (7, 5), "w_in": (6, 5)}
    assert axes_of(traced(model, **shapes))[1] == ["b, c, t, h, w", "text, c"]


def test_a_pooled_prompt_has_none() -> None:
    def model(latents, prompt, w_in):
        y = F.linear(prompt, w_in)
        return latents * y[:, :, None, None, None], y

    shapes = {"prompt": (2, 5), "w_in": (4, 5)}
    assert axes_of(traced(model, **shapes))[1] == ["b, c, t, h, w", "b, c"]


def test_the_entries_of_one_list_are_denoised_together() -> None:
    def model(first, second, third, w_in):
        return F.conv2d(first, w_in) + third.mean(), F.conv2d(second, w_in)

    shape = (4, 3, 8, 12)
    shapes = {"first": shape, "second": shape, "third": shape, "w_in": (4, 3, 1, 1)}
    graph_module = traced(model, **shapes)
    for node, name in zip(
        ir.placeholders(graph_module.graph), ("x[0]", "x[1]", "y[0]"), strict=False
    ):
        ir.set_source(node, name)
    assert siblings(graph_module) == ("x[0]", ["x[1]"])


def test_an_input_that_comes_back_as_an_output_of_its_own_is_denoised_too() -> None:
    def model(sample, sound, w_in, w_sound):
        x, y = F.linear(sample, w_in), F.linear(sound, w_sound)
        z = torch.cat([x, y], 1)
        x, y = attend(z, z, z).split([24, 10], 1)
        return F.linear(x, w_in), F.linear(y, w_in)[..., :3]

    shapes = {"sample": (2, 24, 4), "sound": (2, 10, 3), "w_in": (4, 4), "w_sound": (4, 3)}
    assert siblings(traced(model, **shapes)) == ("sample", ["sound"])


def test_a_condition_of_the_latents_shape_is_not_denoised_where_one_output_comes_back() -> None:
    def model(latents, condition, w_in):
        return F.linear(latents, w_in) + F.linear(condition, w_in)

    shapes = {"latents": (2, 24, 4), "condition": (2, 24, 4), "w_in": (4, 4)}
    assert siblings(traced(model, **shapes)) == ("latents", [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("names", "latents"),
    [
        (("cond", "x"), "x"),
        (("image_latents", "hidden_states"), "hidden_states"),
        (("hidden_states", "image_latents"), "hidden_states"),
        (("encoder_hidden_latents", "sample"), "sample"),
        (("control_latents", "other"), "control_latents"),  # a word is more than none
        (("one", "other"), "one"),  # names say nothing: the first that the graph reads
    ],
)
def test_of_inputs_beside_each_other_the_one_with_a_usual_name_is_denoised(
    names: tuple[str, str], latents: str, dtype: torch.dtype
) -> None:
    def model(one, other, w_in):
        return F.conv2d(torch.cat([one, other], 1).to(dtype), w_in.to(dtype))

    graph_module = traced(model, one=PICTURE, other=PICTURE, w_in=(4, 8, 1, 1))
    for node, name in zip(ir.placeholders(graph_module.graph), names, strict=False):
        ir.set_source(node, name)
    assert siblings(graph_module)[0] == latents


def test_a_prompt_that_comes_back_is_not_denoised() -> None:
    def model(latents, prompt, w_in):
        return F.linear(latents, w_in), F.linear(prompt, w_in)

    shapes = {"latents": (2, 24, 4), "prompt": (2, 7, 4), "w_in": (4, 4)}
    assert siblings(traced(model, **shapes)) == ("latents", [])
