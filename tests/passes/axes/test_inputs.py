"""Axis inference: which axes and roles the inputs get."""

from __future__ import annotations

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from helpers.axes_of import inferred, named, tokens
from helpers.graphs import returned, traced
from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.axes.stated import by_entry
from pab_compile.passes.errors import PabError, StatedAxesError, UnsupportedModelError
from pab_compile.passes.graph import ir


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((2, 4, 3, 8, 12), "b, c, t, h, w"),
        ((2, 3, 4, 8, 12), "b, t, c, h, w"),
        ((2, 3, 8, 12, 4), "b, t, h, w, c"),
        ((4, 4, 4, 4, 4), "b, t, c, h, w"),
        ((2, 4, 8, 12), "b, c, h, w"),
        ((2, 8, 12, 4), "b, h, w, c"),
        ((2, 288, 4), "b, s, c"),
        ((2, 4, 288), "b, c, s"),
    ],
)
def test_the_channel_is_what_the_first_projection_sums_over(
    shape: tuple[int, ...], names: str
) -> None:
    at = names.split(", ").index("c")

    def model(latents, w_in):
        return F.linear(latents.movedim(at, -1), w_in), latents

    assert named(model, latents=shape, w_in=(6, 4)).split(" | ")[1] == names


def test_patches_folded_into_the_channel_are_not_the_channel() -> None:
    def model(latents, w_in):
        x = latents.view(2, 3, 4, 4, 2, 6, 2).permute(0, 1, 3, 5, 2, 4, 6)
        return F.linear(x.reshape(2, 72, 16), w_in), latents

    found = named(model, latents=(2, 3, 4, 8, 12), w_in=(6, 16))
    assert found == "b, t*h*w, c | b, t, c, h, w"


def test_other_inputs_are_sources_by_their_names() -> None:
    def model(latents, prompt, image, w_in):
        text, picture = F.linear(prompt, w_in), F.linear(image, w_in)
        return latents * text.mean() * picture.mean(), text, picture

    table, outputs = inferred(model, image=(2, 5, 4), w_in=(6, 4))
    assert outputs[1:] == ["b, text, c", "b, image, c"]
    assert dict(table.sources) == {"prompt": "text", "image": "image"}
    assert ir.source(table.latents) == "latents"


def test_a_mask_that_nothing_projects_leaves_the_naming_to_what_it_masks() -> None:
    def model(latents, padding, prompt, w_in):
        bias = (1 - padding) * -10000.0
        q = F.linear(tokens(latents), w_in)[:, None]
        text = F.linear(prompt, w_in)[:, None]
        return F.scaled_dot_product_attention(q, text, text, attn_mask=bias[:, None]), text

    table, outputs = inferred(model, padding=(2, 1, 7), w_in=(6, 4))
    assert outputs[1].endswith("text, c")
    assert table.sources["prompt"] == "text"


def test_token_ids_that_are_looked_up_are_tokens_of_their_own() -> None:
    def model(latents, input_ids, glyphs, mask, w_in, w_table):
        x = F.linear(tokens(latents), w_in)
        text, others = F.embedding(input_ids, w_table), F.embedding(glyphs, w_table)
        both = torch.cat([text, x], 1)[:, None]
        out = F.scaled_dot_product_attention(both, both, both, attn_mask=mask[:, None])
        return out[:, 0, 7:], both, text, others.expand(2, 9, 6)

    ids, glyphs = torch.zeros(2, 7, dtype=torch.long), torch.zeros(9, dtype=torch.long)
    found = named(
        model, input_ids=ids, glyphs=glyphs, mask=(2, 295, 295), w_in=(6, 4), w_table=(20, 6)
    )
    assert found == "b, t*h*w, c | b, 1, text+t*h*w, c | b, text, c | 2, glyphs, c"


def test_labels_and_ids_that_meet_other_tokens_name_nothing() -> None:
    def model(latents, prompt, label, codes, kinds, w_in, w_table):
        x = F.linear(tokens(latents), w_in) + F.embedding(label, w_table)[:, None]
        kinds = F.embedding(kinds, w_table)
        return x + F.embedding(codes, w_table), F.linear(prompt, w_in) + kinds, kinds

    label, codes = torch.zeros(2, dtype=torch.long), torch.zeros(2, 288, dtype=torch.long)
    given = {"label": label, "codes": codes, "kinds": torch.zeros(2, 7, dtype=torch.long)}
    found = named(model, **given, w_in=(6, 4), w_table=(20, 6))
    assert found == "b, t*h*w, c | b, text, c | b, text, c"


def test_an_input_that_meets_the_latents_shares_their_axes() -> None:
    def model(latents, control, w_in, w_control):
        x = F.conv3d(latents, w_in) + F.conv3d(control, w_control)
        return x, control

    table, outputs = inferred(
        model, control=(2, 5, 3, 8, 12), w_in=(4, 4, 1, 1, 1), w_control=(4, 5, 1, 1, 1)
    )
    assert outputs == ["b, c, t, h, w", "b, c, t, h, w"]
    assert dict(table.sources) == {}


def test_the_latents_are_the_input_whose_axes_the_output_has() -> None:
    """Prompt and packed latents have one shape here; only the flow of axes tells them apart."""

    def model(caption, latents, w_in):
        x, y = F.linear(latents, w_in), F.linear(caption, w_in)
        return F.scaled_dot_product_attention(x, y, y)

    table, outputs = inferred(model, caption=(2, 24, 4), latents=(2, 24, 4), w_in=(4, 4))
    assert (ir.source(table.latents), outputs) == ("latents", ["b, s, c"])


def test_packed_tokens_that_are_split_are_frame_major() -> None:
    def model(latents, w_in):
        x = F.linear(latents, w_in).reshape(2, 3, 96, 4)
        return x, x.transpose(1, 2).reshape(192, 3, 4)

    table, outputs = inferred(model, latents=(2, 288, 4), w_in=(4, 4))
    assert outputs == ["b, t, h*w, c", "b*h*w, t, c"]
    assert table.notes == (
        "packed tokens of 'latents' are split into 3*96: taken as frame-major, "
        "the outer factor as t, the rest as space",
    )


def test_packed_tokens_merged_into_channels_are_still_packed() -> None:
    def model(latents, w_in):
        return F.linear(latents.reshape(2, 72, 16), w_in)

    table, outputs = inferred(model, latents=(2, 288, 4), w_in=(4, 16))
    assert outputs == ["b, s, c"]
    assert not table.frame_major


def test_stated_axes_win() -> None:
    def model(latents, extra):
        return latents.permute(0, 3, 1, 2), extra + latents.mean()

    stated = {"latents": "b t s c", "extra": "b point c"}
    table, outputs = inferred(model, stated, latents=(2, 3, 8, 4), extra=(2, 5, 4))
    assert outputs == ["b, c, t, s", "b, point, c"]
    assert dict(table.sources) == {"extra": "point"}


def test_stated_times_are_not_axes() -> None:
    table, outputs = inferred(
        lambda latents, prompt, sigma: latents * prompt.mean() * sigma,
        {"sigma": "step", "prompt": "prompt"},
        sigma=(1,),
    )
    assert outputs == ["b, c, t, h, w"]
    assert dict(table.sources) == {"prompt": "text"}


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (
            {"latents": "b c t h"},
            "input 'latents' has shape (2, 4, 3, 8, 12), which the stated axes 'b c t h' do not "
            "fit: give one distinct name per dimension, separated by spaces",
        ),
        (
            {"latents": "b c t h h"},
            "input 'latents' has shape (2, 4, 3, 8, 12), which the stated axes 'b c t h h' do not "
            "fit: give one distinct name per dimension, separated by spaces",
        ),
        (
            {"latent": "step"},
            "axes are stated for 'latent', which is no input of this graph; "
            "did you mean 'latents'? (inputs: latents)",
        ),
        (
            {"latent": "b c t h w"},
            "axes are stated for 'latent', which is no input of this graph; "
            "did you mean 'latents'? (inputs: latents)",
        ),
    ],
)
def test_stated_axes_that_do_not_fit_are_refused(stated: dict[str, str], message: str) -> None:
    with pytest.raises(StatedAxesError) as caught:
        inferred(lambda latents: latents * 2, stated)
    assert str(caught.value) == message
    assert isinstance(caught.value, PabError)


def test_a_graph_without_latents_is_refused_with_what_was_seen() -> None:
    with pytest.raises(UnsupportedModelError, match=r"inputs: image \(2, 4\)\).*options="):
        inferred(lambda image: image * 2, image=(2, 4))


def test_latents_of_two_dimensions_are_tokens_without_a_batch() -> None:
    _, outputs = inferred(lambda latents: latents * 2, latents=(6, 4))
    assert outputs == ["s, c"]


def test_a_graph_of_text_only_has_no_latents() -> None:
    with pytest.raises(UnsupportedModelError, match="found no latents"):
        inferred(lambda prompt, latents: prompt * latents.sum(), latents=(2,))


def test_roles_leave_out_what_has_no_name() -> None:
    def model(latents):
        return latents.repeat_interleave(2, 2).permute(0, 2, 1, 3, 4).flatten(0, 1)

    graph_module = traced(model)
    table = infer_axes(graph_module)
    output = returned(graph_module)[0]
    assert table.names(output) == ("b*t*2", "c", "h", "w")
    assert [table.roles(output, dim) for dim in range(2)] == [("b", "t"), ("channel",)]


def test_the_name_of_a_list_or_dict_means_its_entries_and_a_full_name_comes_first() -> None:
    graph = fx.Graph()
    entries = [graph.placeholder(f"entry{number}") for number in range(3)]
    for number, node in enumerate(entries):
        ir.set_source(node, f"residuals[{number}]")
    ir.set_holders(entries[2], ("outer", "inner"))
    assert by_entry(entries, {"residuals[1]": "prompt", "residuals": "step"}) == {
        "residuals[0]": "step",
        "residuals[1]": "prompt",
        "residuals[2]": "step",
    }
    for name in ("outer", "inner"):
        assert by_entry(entries, {name: "step"}) == {"residuals[2]": "step"}
    with pytest.raises(StatedAxesError, match=r"did you mean 'residuals'\? \(inputs: residuals\)"):
        by_entry(entries, {"residual": "step"})
