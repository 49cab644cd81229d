"""Axis inference through concatenation, slices and lookups."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from helpers.axes_of import named, tokens

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


def test_a_view_that_splits_a_concatenation_leaves_its_parts_to_other_views() -> None:
    def model(latents, prompt):
        both = torch.cat([prompt, tokens(latents)], 1)
        pooled = both.view(2, 5, 59, 4).mean(2)
        again = both.unflatten(2, (2, 2)).flatten(2)
        return pooled, again[:, 7:]

    expected = "b, text*t*h*w, c | b, t*h*w, c"
    assert named(model) == expected


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


def test_rows_that_were_picked_from_two_axes_in_one_name_neither_by_the_other() -> None:
    def model(latents, prompt, chosen, w_in):
        x = (prompt @ w_in)[None] + latents[:, None, :, 0, 0, 0]
        rows = torch.zeros(7, 4).index_add(0, chosen, x.flatten(0, 1)[chosen])
        return x + rows.view(x.shape)

    shapes = {"latents": (1, 4, 3, 8, 12), "prompt": (7, 4), "w_in": (4, 4)}
    assert named(model, chosen=torch.arange(2), **shapes) == "b, text, c"


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
