"""Axis inference: one rule or idea each, read off the names of a small function's outputs."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from helpers.axes_of import inferred, named, tokens

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
