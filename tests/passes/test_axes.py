"""Axis inference: one rule or idea each, read off the names of a small function's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from graphs import returned, traced
from pab_compile.passes import ir
from pab_compile.passes.axes import AxisTable, StatedAxesError, infer_axes
from pab_compile.passes.errors import PabError, UnsupportedModelError


def inferred(
    function: Callable[..., Any], stated: Mapping[str, str] | None = None, **inputs: Any
) -> tuple[AxisTable, list[str]]:
    """Axes of a function, and the names of its outputs' dimensions, one string per output."""
    graph_module = traced(function, **inputs)
    table = infer_axes(graph_module, stated)
    return table, [", ".join(table.names(node)) for node in returned(graph_module)]


def named(function: Callable[..., Any], **inputs: Any) -> str:
    """Names of the one output's dimensions, or of all outputs with ``|`` between."""
    return " | ".join(inferred(function, **inputs)[1])


def tokens(latents: torch.Tensor) -> torch.Tensor:
    """``[b, t*h*w, c]`` of latents of the usual shape."""
    return latents.permute(0, 2, 3, 4, 1).reshape(2, 288, 4)


# -- views -------------------------------------------------------------------------------------


def test_a_view_joins_axes_outer_to_inner() -> None:
    def model(latents):
        return latents.permute(0, 2, 1, 3, 4).reshape(6, 4, 96)

    assert named(model) == "b*t, c, h*w"


def test_a_view_takes_joined_axes_apart_again() -> None:
    def model(latents):
        return tokens(latents).reshape(6, 8, 12, 4)

    assert named(model) == "b*t, h, w, c"


def test_a_view_inside_an_axis_gives_parts_of_that_axis() -> None:
    def model(latents):
        return latents.view(2, 4, 3, 2, 4, 3, 4).permute(0, 2, 3, 5, 4, 6, 1)

    assert named(model) == "b, t, h, w, h, w, c"


def test_equal_sizes_are_not_taken_for_equal_axes() -> None:
    def model(latents):
        x = latents.permute(0, 2, 3, 4, 1).reshape(16, 16, 4)
        x = x.reshape(4, 4, 16, 4).permute(0, 2, 1, 3).reshape(64, 4, 4)
        return x, x.reshape(4, 4, 4, 4, 4).permute(0, 4, 3, 1, 2)

    assert named(model, latents=(4, 4, 4, 4, 4)) == "b*h*w, t, c | b, c, t, h, w"


def test_an_axis_of_size_one_keeps_its_place() -> None:
    def model(latents):
        x = latents.permute(0, 2, 3, 4, 1).reshape(2, 96, 4)
        spatial = x.reshape(2, 1, 96, 4)
        return x, spatial, spatial.permute(0, 2, 1, 3).reshape(192, 1, 4)

    expected = "b*t, h*w, c | b, t, h*w, c | b*h*w, t, c"
    assert named(model, latents=(2, 4, 1, 8, 12)) == expected


def test_an_axis_of_size_one_stays_with_the_axes_it_was_packed_with() -> None:
    def model(latents, w_in):
        x = F.conv3d(latents, w_in).flatten(2).transpose(1, 2)
        return x, x.reshape(2, 96, 2, 2).transpose(1, 2)

    found = named(model, latents=(2, 4, 1, 8, 12), w_in=(4, 4, 1, 1, 1))
    assert found == "b, t*h*w, c | b, c, t*h*w, c"


def test_a_view_across_axes_mixes_them_and_says_so() -> None:
    def model(latents):
        return latents.reshape(2, 4, 8, 3, 12)

    table, outputs = inferred(model)
    assert outputs == ["b, c, t*h, t*h, w"]
    assert table.notes[-1].startswith("a view cuts across t*h; its axes are mixed (")


def test_dimensions_are_inserted_dropped_and_moved() -> None:
    def model(latents):
        x = latents.unsqueeze(2).movedim(1, -1)
        return x, x.squeeze(1).swapaxes(0, 1), latents.select(2, 0), latents.mT

    expected = "b, 1, t, h, w, c | t, b, h, w, c | b, c, h, w | b, c, t, w, h"
    assert named(model) == expected


def test_complex_views_add_and_drop_the_pair() -> None:
    def model(latents):
        x = torch.view_as_complex(latents.reshape(2, 4, 3, 8, 6, 2))
        return x * 2, torch.view_as_real(x * 2).flatten(-2)

    assert named(model) == "b, c, t, h, w | b, c, t, h, w*2"


# -- repetition and broadcasting ---------------------------------------------------------------


def test_repeated_conditions_learn_what_their_copies_meet() -> None:
    def model(latents, condition):
        x = tokens(latents).reshape(2, 3, 96, 4)
        spatial = condition.repeat_interleave(3, 0)
        temporal = condition.repeat_interleave(96, 0)
        y = x.reshape(6, 96, 4) * spatial[:, None]
        z = x.permute(0, 2, 1, 3).reshape(192, 3, 4) * temporal[:, None]
        return spatial, temporal, y, z

    expected = "b*t, c | b*h*w, c | b*t, h*w, c | b*h*w, t, c"
    assert named(model, condition=(2, 4)) == expected


def test_repeat_puts_copies_outside_and_repeat_interleave_inside() -> None:
    def model(latents):
        return latents.repeat(1, 1, 2, 1, 1), latents.repeat_interleave(2, 2)

    assert named(model) == "b, c, 2*t, h, w | b, c, t*2, h, w"


def test_expanded_dimensions_take_the_axis_they_meet() -> None:
    def model(latents, frame):
        wide = frame[:, None].expand(2, 3, 4, 8, 12)
        return wide, wide + latents.transpose(1, 2)

    table, outputs = inferred(model, frame=(2, 4, 8, 12))
    assert outputs == ["b, t, c, h, w", "b, t, c, h, w"]
    assert dict(table.sources) == {}


def test_a_table_ties_nothing_together() -> None:
    """One table meets frames, rows and a prompt of one size, as rotary tables do."""

    def model(latents, prompt, w_table):
        rows = w_table[:8, 0]
        x = latents + rows[:, None, None] + rows[:, None]
        return x, prompt + rows[:, None]

    table, outputs = inferred(model, latents=(2, 4, 8, 8, 12), prompt=(2, 8, 4), w_table=(16, 1))
    assert outputs == ["b, c, t, h, w", "b, text, c"]
    assert not any("meets" in note for note in table.notes)


def test_slices_of_one_table_are_named_by_what_each_meets() -> None:
    def model(latents, w_table):
        first, second = w_table[:8], w_table[:8]
        return first, second, latents + first[:, None, None] + second[:, None]

    found = named(model, latents=(2, 4, 8, 8, 12), w_table=(16,))
    assert found == "t | h | b, c, t, h, w"


def test_an_axis_of_size_one_survives_a_condition_that_lacks_it() -> None:
    def model(latents, condition):
        x = latents.permute(0, 2, 3, 4, 1).reshape(2, 96, 4)
        y = condition[:, None] * x
        return y, y.reshape(2, 1, 96, 4)

    found = named(model, latents=(2, 4, 1, 8, 12), condition=(2, 4))
    assert found == "b*t, h*w, c | b, t, h*w, c"


def test_positions_given_as_an_input_tie_no_sources_together() -> None:
    """The caller's positions meet a prompt and then packed latents of as many tokens."""

    def model(latents, prompt, positions, w_in):
        text, x = prompt + positions[:, None], F.linear(latents, w_in) + positions[:, None]
        return text, x, F.scaled_dot_product_attention(x, text, text)

    table, outputs = inferred(
        model, latents=(2, 8, 4), prompt=(2, 8, 4), positions=(8,), w_in=(4, 4)
    )
    assert outputs == ["b, text, c", "b, s, c", "b, s, c"]
    assert dict(table.sources) == {"prompt": "text"}


def test_two_axes_of_one_input_stay_apart_even_where_they_meet() -> None:
    def model(latents):
        return latents + latents.transpose(3, 4)

    table, outputs = inferred(model, latents=(2, 4, 3, 8, 8))
    assert outputs == ["b, c, t, h, w"]
    assert "h meets w; kept apart" in "\n".join(table.notes)


# -- concatenation and slices ------------------------------------------------------------------


def test_a_split_at_the_same_place_recovers_what_was_concatenated() -> None:
    def model(latents, prompt):
        both = torch.cat([prompt, tokens(latents)], 1)
        text, video = (both * 2).split([7, 288], 1)
        return both, text, video, video.reshape(2, 3, 8, 12, 4)

    expected = "b, text+t*h*w, c | b, text, c | b, t*h*w, c | b, t, h, w, c"
    assert named(model) == expected


def test_slices_of_a_concatenation_may_cut_elsewhere() -> None:
    def model(latents, prompt):
        both = torch.cat([prompt, tokens(latents)], 1)
        return both[:, 3:7], both[:, 5:], both[:, 7 + 96 :], both[:, :295]

    expected = "b, text, c | b, text+t*h*w, c | b, t*h*w, c | b, text+t*h*w, c"
    assert named(model) == expected


def test_equal_parts_of_a_concatenation_stay_apart() -> None:
    def model(latents, prompt):
        both = torch.cat([prompt, latents.permute(0, 2, 3, 4, 1).reshape(2, 8, 4)], 1)
        text, video = both.split(8, 1)
        return both, text, video

    expected = "b, text+t*h*w, c | b, text, c | b, t*h*w, c"
    assert named(model, latents=(2, 4, 2, 2, 2), prompt=(2, 8, 4)) == expected


def test_slices_of_an_input_put_back_together_are_that_input_again() -> None:
    def model(latents):
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        again = torch.cat([first, rest], 2)
        return rest, again.permute(0, 2, 3, 4, 1).reshape(6, 96, 4)

    assert named(model) == "b, c, t, h, w | b*t, h*w, c"


def test_packed_pieces_are_put_back_together_too() -> None:
    def model(latents):
        x = tokens(latents)
        return torch.cat([x[:, :96], x[:, 96:] * 2], 1).reshape(6, 8, 12, 4)

    assert named(model) == "b*t, h, w, c"


def test_pieces_cut_inside_a_frame_are_put_back_together_too() -> None:
    def model(latents):
        x = tokens(latents)
        return x[:, :5], torch.cat([x[:, :5], x[:, 5:] * 2], 1).reshape(6, 8, 12, 4)

    assert named(model) == "b, t*h*w, c | b*t, h, w, c"


def test_a_view_of_two_sources_side_by_side_keeps_them_apart() -> None:
    def model(latents, prompt, image):
        both = torch.cat([prompt, image], 1).unflatten(1, (2, 7))
        return both, prompt * 2, image * 2, latents * 2

    found = named(model, image=(2, 7, 4))
    assert found.startswith("b, 2, text*image, c | b, text, c | b, image, c | b, c, t, ")


def test_frames_concatenated_in_packed_form_can_be_unpacked() -> None:
    def model(latents, reference):
        x = latents.permute(0, 2, 3, 4, 1)
        y = reference.permute(0, 2, 3, 4, 1)
        both = torch.cat([y.reshape(2, 192, 4), x.reshape(2, 288, 4)], 1)
        return both.reshape(2, 5, 96, 4)

    assert named(model, reference=(2, 4, 2, 8, 12)) == "b, t, h*w, c"


def test_padding_is_cut_off_again() -> None:
    def model(latents):
        padded = F.pad(latents, (0, 0, 1, 2))
        return padded, padded[:, :, :, 1:9]

    assert named(model) == "b, c, t, 1+h+2, w | b, c, t, h, w"


def test_stacked_tensors_are_unbound_again() -> None:
    def model(latents):
        both = torch.stack([latents, latents * 2], 1)
        return both, both.unbind(1)[1], both.select(1, 0)

    assert named(model) == "b, 2, c, t, h, w | b, c, t, h, w | b, c, t, h, w"


def test_what_is_written_into_a_buffer_names_the_buffer() -> None:
    def model(latents, prompt):
        both = torch.zeros(2, 295, 4)
        both = torch.slice_scatter(both, prompt, 1, 0, 7)
        both = torch.slice_scatter(both, tokens(latents), 1, 7, 295)
        return both, both[:, 7:]

    assert named(model) == "b, text+t*h*w, c | b, t*h*w, c"


def test_shifted_windows_keep_their_axes() -> None:
    def model(latents):
        x = torch.roll(latents, (1, 1), (3, 4)).flip(2)
        x = x.view(2, 4, 3, 2, 4, 3, 4).permute(0, 2, 3, 5, 4, 6, 1)
        return x.reshape(36, 16, 4)

    assert named(model) == "b*t*h*w, h*w, c"


# -- lookups -----------------------------------------------------------------------------------


def test_rows_scattered_into_a_sequence_bring_their_axis() -> None:
    def copied(latents, prompt, w_in):
        x = tokens(latents) @ w_in
        out = x.new_zeros(2, 295, 4).index_copy(1, torch.arange(7), prompt @ w_in)
        return out.index_copy(1, torch.arange(7, 295), x)

    def put(latents, prompt, w_in):
        rows = torch.cat([prompt[0], prompt[1]]) @ w_in
        everything = rows.new_zeros(302, 4).index_put((torch.arange(14),), rows)
        return everything.index_put((torch.arange(14, 302),), tokens(latents)[0] @ w_in)

    assert named(copied, w_in=(4, 4)) == "b, text*t*h*w, c"
    assert named(put, w_in=(4, 4)) == "text*t*h*w, c"


def test_an_index_put_of_pairs_of_positions_keeps_the_axes_it_writes_to() -> None:
    def model(latents, prompt):
        pairs = (torch.arange(2), torch.arange(2))
        return prompt.index_put(pairs, latents[:, :, 0, 0, 0])

    assert named(model) == "b, text, c"


def test_looked_up_tokens_keep_their_axis() -> None:
    def model(latents, order):
        x = tokens(latents)
        return x[:, order], x.index_select(1, order), x[:, order, 0]

    found = named(model, order=torch.arange(0, 288, 2))
    assert found == "b, t*h*w, c | b, t*h*w, c | b, t*h*w"


def test_a_table_looked_up_by_positions_meets_what_the_positions_meet() -> None:
    def model(latents, positions, w_table):
        rows = F.embedding(positions, w_table)
        return rows, latents + rows.transpose(0, 1)[:, :, None, None]

    found = named(model, positions=torch.arange(3), w_table=(16, 4))
    assert found == "t, c | b, c, t, h, w"


# -- sums --------------------------------------------------------------------------------------


def test_reductions_drop_or_keep_their_dimension() -> None:
    def model(latents):
        return latents.mean((3, 4)), latents.amax(2, keepdim=True), latents.var(1).sum(-1)

    assert named(model) == "b, c, t | b, c, 1, h, w | b, t, h"


def test_a_patch_embedding_keeps_the_grid() -> None:
    def model(latents, w_patch):
        x = F.conv3d(latents, w_patch, stride=(1, 2, 2))
        return x, x.flatten(2).transpose(1, 2).reshape(6, 24, 5)

    assert named(model, w_patch=(5, 4, 1, 2, 2)) == "b, c, t, h, w | b*t, h*w, c"


def test_overlapping_convolutions_show_the_axes_they_look_at() -> None:
    def model(latents, w_same, w_half):
        x = latents.permute(0, 2, 1, 3, 4).reshape(6, 4, 8, 12)
        return F.conv2d(x, w_same, padding=1), F.conv2d(x, w_half, stride=2, padding=1)

    sizes = {"w_same": (4, 4, 3, 3), "w_half": (4, 4, 3, 3)}
    assert named(model, **sizes) == "b*t, c, h, w | b*t, c, h, w"


def test_pooling_and_interpolation_keep_the_grid() -> None:
    def model(latents):
        x = latents.permute(0, 2, 1, 3, 4).reshape(6, 4, 8, 12)
        return F.avg_pool2d(x, 2), F.interpolate(x, scale_factor=2.0), F.pixel_shuffle(x, 2)

    assert named(model) == "b*t, c, h, w | b*t, c, h*2, w*2 | b*t, 1, h*2, w*2"


def test_products_keep_what_they_do_not_sum_over() -> None:
    def model(latents, prompt, w_in):
        x = F.linear(tokens(latents), w_in)
        y = F.linear(prompt, w_in)
        return x @ y.transpose(1, 2), torch.einsum("b i c, b j c -> b j i", x, y)

    found = named(model, w_in=(6, 4))
    assert found == "b, t*h*w, text | b, text, t*h*w"


def test_einsum_reads_an_ellipsis_from_the_right() -> None:
    def model(latents, w_mix):
        return torch.einsum("...hw, wx -> x...h", latents, w_mix)

    stated = {"latents": "b c t h w"}
    _, outputs = inferred(model, stated, w_mix=(12, 6))
    assert outputs == ["c, b, c, t, h"]


def test_attention_shares_batch_and_keys_and_takes_channels_from_values() -> None:
    def model(latents, prompt, w_in, mask):
        x = F.linear(tokens(latents), w_in)
        q = x.reshape(2, 288, 2, 3).transpose(1, 2)
        text = F.linear(prompt, w_in).repeat_interleave(1, 0).reshape(2, 7, 2, 3).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, text, text, attn_mask=mask[:, None, None])
        return out.transpose(1, 2).reshape(2, 288, 6), mask

    found = named(model, w_in=(6, 4), mask=(2, 7))
    assert found == "b, t*h*w, c | b, text"


def test_meshgrids_know_their_order() -> None:
    def model(latents):
        rows, columns = torch.arange(8.0), torch.arange(12.0)
        grid = torch.meshgrid(columns, rows, indexing="xy")
        return grid[1], latents + grid[1]

    assert named(model) == "h, w | b, c, t, h, w"


def test_an_op_without_a_rule_is_noted_and_leaves_its_axes_unnamed() -> None:
    def model(latents):
        return torch.cdist(tokens(latents), tokens(latents)[:, :5]), latents

    table, outputs = inferred(model)
    assert outputs[0] == "2, 288, 5"
    assert any(note.startswith("no axis rule for aten.") for note in table.notes)


# -- inputs ------------------------------------------------------------------------------------


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
        {"sigma": "step", "prompt": "held"},
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
    with pytest.raises(UnsupportedModelError, match=r"inputs: latents \(2, 4\)\).*options="):
        inferred(lambda latents: latents * 2, latents=(2, 4))


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


# -- any chain ---------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, Any]], list[list[int]]]:
    """Sizes of five axes, some rearrangements, and which axes every dimension then is."""
    sizes = tuple(draw(st.lists(st.sampled_from([2, 2, 3, 4]), min_size=5, max_size=5)))
    dims = [[axis] for axis in range(5)]
    steps: list[tuple[str, Any]] = []

    def shape() -> list[int]:
        return [_count(dim, sizes) for dim in dims]

    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["permute", "join", "part", "double", "cut"]))
        at = draw(st.integers(0, len(dims) - 1))
        if kind == "permute":
            order = draw(st.permutations(range(len(dims))))
            dims = [dims[i] for i in order]
            steps.append(("permute", order))
        elif kind == "join" and at + 1 < len(dims):
            dims[at : at + 2] = [dims[at] + dims[at + 1]]
            steps.append(("reshape", shape()))
        elif kind == "part" and len(dims[at]) > 1:
            where = draw(st.integers(1, len(dims[at]) - 1))
            dims[at : at + 1] = [dims[at][:where], dims[at][where:]]
            steps.append(("reshape", shape()))
        elif kind in ("double", "cut"):
            total = shape()[at]
            steps.append((kind, (at, total, draw(st.integers(1, total)))))
    return sizes, steps, dims


def _count(dim: list[int], sizes: tuple[int, ...]) -> int:
    count = 1
    for axis in dim:
        count *= sizes[axis]
    return count


def _apply(x: torch.Tensor, kind: str, what: Any) -> torch.Tensor:
    if kind == "permute":
        return x.permute(what)
    if kind == "reshape":
        return x.reshape(what)
    at, total, place = what
    if kind == "double":  # with something else beside it, and without it again
        return torch.cat([x * 2, x], at).narrow(at, total, total)
    return torch.cat([x.narrow(at, 0, place), x.narrow(at, place, total - place)], at)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain_of_rearrangements_names_what_it_made(chain: Any) -> None:
    sizes, steps, dims = chain

    def model(latents):
        x = latents
        for kind, what in steps:
            x = _apply(x, kind, what)
        return x

    assert named(model, latents=sizes) == ", ".join("*".join("bcthw"[a] for a in d) for d in dims)
