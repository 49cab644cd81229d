"""A captured graph whose sites are coalesced, and its check against the graph before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pab_compile.passes.rewrite.broadcast import broadcast
from pab_compile.passes.rewrite.coalesce import Coalesced, coalesce, verify_coalesced
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.site import Site

from .captured import Captured, analysed
from .latte import assert_different, assert_same
from .reusing import reused


def alike(site: Site) -> int:
    """The pattern of sites that are all reused together."""
    return 0


def coalesced(model: Captured, pattern: Callable[[Site], Any] = alike) -> Coalesced:
    sites = analysed(model, "gated").sites
    done = coalesce(model.graph_module, sites, pattern)
    verify_coalesced(done.graph_module, model.graph_module, done.sites, pattern)
    return done


def check_numbers(model: Captured, done: Coalesced) -> None:
    """Computing gives the model's output, reusing what the single sites give on reuse."""
    single = [site for site in analysed(model, "gated").sites if site.can_broadcast]
    assert torch.equal(done.graph_module(*model.args)[0], model.eager()[0])
    expected = reused(model, model.graph_module, single)
    assert_different(expected, model.eager()[0])
    merged = [site for site in done.sites if site.can_broadcast]
    assert_same(reused(model, done.graph_module, merged), expected)
    cut = cut_into_pieces(broadcast(done.graph_module, done.sites, lambda site: True)[0])
    verify(cut, done.graph_module)
    assert torch.equal(cut(*model.args)[0], model.eager()[0])


def parts_of(done: Coalesced) -> list[int]:
    return [len(site.parts) for site in done.sites if site.can_broadcast]
