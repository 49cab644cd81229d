"""Sites: which ones a graph has, what each caches and saves, and why some are not broadcast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

import helpers.captured as models
from helpers.captured import (
    BATCH,
    CHANNELS,
    TEXT,
    TOKENS,
    analysed,
    attend,
    captured,
    latents_of,
    small_dit,
    time_embedding,
    tokens_of,
)
from helpers.golden import check_inline
from pab_compile.passes.sites.site import Site


def sites_of(function: Callable[..., torch.Tensor], cut: str = "attention") -> tuple[Site, ...]:
    return analysed(captured(function), cut).sites


def table(sites: tuple[Site, ...]) -> str:
    rows = [
        f"{site.name}: {site.kind} by {site.mechanism}, caches {cut or 'nothing'}"
        for site in sites
        for cut in [" ".join(node.name for node in site.cut)]
    ]
    return "\n".join(rows)


def test_sites_stand_in_the_order_in_which_the_model_runs_them() -> None:
    check_inline(
        table(analysed(small_dit(2)).sites),
        """\
        blocks.0:spatial: spatial by sdpa, caches linear_5
        blocks.0:cross: cross by sdpa, caches linear_8
        blocks.0.down: mlp by mlp, caches linear_10
        blocks.1:spatial: spatial by sdpa, caches linear_13
        blocks.1:cross: cross by sdpa, caches linear_16
        blocks.1.down: mlp by mlp, caches linear_18
        """,
    )


def test_names_are_unique_and_numbered_where_they_repeat() -> None:
    names = [site.name for site in analysed(small_dit(2)).sites]
    assert len(set(names)) == len(names) == 6


def test_sites_are_named_by_the_path_of_their_module() -> None:
    names = [site.name for site in analysed(small_dit(1)).sites]
    assert all(name.startswith("blocks.0") for name in names)


def test_bytes_are_those_of_the_cut() -> None:
    (site,) = sites_of(models.joint_attention)
    assert site.cache_bytes == 4 * BATCH * (TEXT + TOKENS) * CHANNELS


def test_flops_are_those_of_the_region() -> None:
    (site,) = sites_of(models.cross_attention)
    projections = 2 * (2 * BATCH * TOKENS * CHANNELS * CHANNELS)  # of the query and of the output
    attention = 2 * BATCH * TOKENS * TEXT * (CHANNELS + CHANNELS)
    assert site.flops == projections + attention


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.gated_attention, "full"),
        (models.cross_attention, "cross"),
        (models.two_prompts, "cross"),
        (models.joint_attention, "joint"),
        (models.batch_loop, "full"),
        (models.no_residual, "full"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_one_attention_or_several_merged_are_one_site(
    model: Callable[..., torch.Tensor], kind: str
) -> None:
    (site,) = sites_of(model)
    assert (site.kind, site.can_broadcast) == (kind, True)


def test_the_evidence_of_merged_attentions_is_kept_for_each() -> None:
    (site,) = sites_of(models.two_prompts)
    assert "another source, text" in site.reason
    assert "another source, image" in site.reason


def test_an_mlp_has_the_axes_of_its_tokens_and_no_keys() -> None:
    site = sites_of(models.mlp_block)[1]
    assert (site.kind, site.mechanism) == ("mlp", "mlp")
    assert (site.query_axes, site.key_axes) == (("t", "h", "w"), ())


def test_attention_over_the_prompt_alone_is_not_broadcast_and_says_why() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        refined = prompt + attend(prompt, prompt, prompt)
        return latents_of(x + linear(attend(x, refined, refined), w_out))

    text, cross = sites_of(model)
    assert (text.kind, text.can_broadcast, text.region) == ("text", False, ())
    assert "does not read the latents, so it is computed once per generation" in text.reason
    assert text.flops > 0
    assert cross.can_broadcast


def test_attention_over_prompt_and_timestep_is_computed_at_every_step() -> None:
    def model(latents, timestep, prompt, w_in, w_time, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        timed = prompt + time_embedding(timestep, w_time)
        refined = prompt + attend(timed, timed, timed)
        return latents_of(x + linear(attend(x, refined, refined), w_out))

    text, _ = sites_of(model)
    assert not text.can_broadcast
    assert text.reason.endswith("so it is computed at every step")


@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_what_leaves_a_region_is_its_cut_and_nothing_else(cut: str) -> None:
    for site in analysed(small_dit(2), cut).sites:
        inside = set(site.region)
        leaving = {node for node in inside if any(user not in inside for user in node.users)}
        assert leaving == set(site.cut)


def test_the_gated_cut_moves_every_gated_site_and_no_other() -> None:
    before = {site.name: site for site in analysed(small_dit(1), "attention").sites}
    after = {site.name: site for site in analysed(small_dit(1), "gated").sites}
    cuts = {
        name: (before[name].cut[0].target.__name__, after[name].cut[0].target.__name__)  # type: ignore[union-attr]
        for name in before
    }
    assert cuts == {
        "blocks.0:spatial": ("linear.default", "mul.Tensor"),
        "blocks.0:cross": ("linear.default", "linear.default"),
        "blocks.0.down": ("linear.default", "mul.Tensor"),
    }
