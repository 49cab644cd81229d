"""Sums of residuals in every spelling: what is cached, and the numbers of computing and reusing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from helpers.captured import Captured, analysed
from helpers.golden import check_inline
from helpers.latte import assert_different, assert_same
from helpers.residuals import FORMS, NO_RESIDUALS, OF_THE_STEP, residual_model
from helpers.reusing import reused
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import format_graph, format_node
from pab_compile.passes.rewrite.coalesce import Coalesced, coalesce, verify_coalesced
from pab_compile.passes.sites.site import Site

LOW = ["float32 around the sum", "float32 for the gate", "addcmul_", "where, sum first", "sub"]


def alike(site: Site) -> int:
    """All sites are reused together."""
    return 0


def coalesced(model: Captured, sites: Sequence[Site] = ()) -> Coalesced:
    sites = sites or analysed(model, "gated").sites
    done = coalesce(model.graph_module, sites, alike)
    verify_coalesced(done.graph_module, model.graph_module, done.sites, alike)
    return done


@pytest.mark.parametrize("name", FORMS)
def test_every_residual_is_a_part_of_one_sum(name: str) -> None:
    model = residual_model(FORMS[name])
    singles = analysed(model, "gated").sites
    done = coalesced(model, singles)
    (site,) = done.sites
    assert [part.kind for part in site.parts] == ["full", "mlp"]
    assert len(site.cut) == 1
    assert_same(done.graph_module(*model.args)[0], model.eager()[0])
    expected = reused(model, model.graph_module, singles)
    assert_different(expected, model.eager()[0])
    assert_same(reused(model, done.graph_module, done.sites), expected)


@pytest.mark.parametrize("name", LOW)
def test_in_bfloat16_it_is_the_same_and_needs_no_more_bytes_than_the_stream(name: str) -> None:
    model = residual_model(FORMS[name], low=True)
    done = coalesced(model)
    (site,) = done.sites
    assert [part.kind for part in site.parts] == ["full", "mlp"]
    (cut,) = site.cut
    (returned,) = ir.outputs(done.graph_module.graph)
    assert site.cache_bytes == ir.num_bytes(cut) == ir.num_bytes(returned)
    assert_same(done.graph_module(*model.args)[0].float(), model.eager()[0].float(), 0.02)


@pytest.mark.parametrize("name", OF_THE_STEP)
def test_what_the_step_scales_is_no_sum_of_what_is_cached(name: str) -> None:
    done = coalesced(residual_model(OF_THE_STEP[name]))
    assert [site.kind for site in done.sites] == ["full", "mlp"]
    assert not any(site.parts for site in done.sites)


@pytest.mark.parametrize("name", NO_RESIDUALS)
def test_what_is_no_residual_is_merged_with_nothing(name: str) -> None:
    assert coalesced(residual_model(NO_RESIDUALS[name])).count == 0


def test_before_a_gate_nothing_is_a_sum() -> None:
    model = residual_model(FORMS["addcmul"])
    assert coalesced(model, analysed(model, "attention").sites).count == 0


def test_a_float32_residual_around_a_bfloat16_stream_is_kept_in_bfloat16() -> None:
    model = residual_model(FORMS["float32 around the sum"], low=True)
    done = coalesced(model)
    assert format_graph(done.graph_module) == format_graph(model.graph_module)
    (site,) = done.sites
    ((end, start),) = site.starts.items()
    check_inline(
        f"{format_node(start.node)}\n{format_node(end)}\nkept as {start.dtype}",
        """\
        %linear = aten.linear(%view, %w_in) : bf16[2, 30, 4]
        %type_as_1 = aten._to_copy(%add_1, dtype=bf16) : bf16[2, 30, 4]
        kept as torch.bfloat16
        """,
    )
