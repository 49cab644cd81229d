"""Latte of diffusers, from capture to pieces: one spatial and one temporal block, tiny."""

from __future__ import annotations

from collections import Counter

import pytest

from helpers.captured import Captured, analysed, small_latte
from helpers.golden import check_golden
from pab_compile.passes.graph import ir
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.broadcast import branches, broadcast
from pab_compile.passes.rewrite.pieces import cut_into_pieces


@pytest.fixture
def model() -> Captured:
    return small_latte()


def sites_table(program: Program) -> str:
    """Every site by its ops, with no name that a version of torch may choose."""
    lines = []
    for site in program.sites:
        axes = f"{'*'.join(site.query_axes)} <- {'*'.join(site.key_axes) or '-'}"
        lines.append(f"{site.name}: {site.kind} by {site.mechanism}, {axes}")
        cut = ", ".join(f"{ir.op_name(n)} {list(ir.shape(n) or ())}" for n in site.cut)
        lines.append(f"    caches {cut}: {site.cache_bytes} bytes; saves {site.flops} FLOPs")
        kept = [ir.op_name(n) for n in site.region if ir.op_name(n) in TOLD]
        lines.append(f"    dead on reuse: {' '.join(kept)}")
    return "\n".join(lines) + "\n"


# Ops that mean something; views and copies come and go with the version of torch.
TOLD = ("linear", "layer_norm", "scaled_dot_product_attention", "gelu", "mul", "add")


def test_sites_of_both_cuts_side_by_side(model: Captured) -> None:
    texts = [f"cut={cut}\n{sites_table(analysed(model, cut))}" for cut in ("attention", "gated")]
    check_golden("latte_sites", "\n".join(texts))


@pytest.mark.parametrize("cut", ["attention", "gated"])
def test_branches_by_their_ops(model: Captured, cut: str) -> None:
    rewritten, _ = broadcast(
        model.graph_module, analysed(model, cut).sites, lambda site: site.kind != "mlp"
    )
    lines = []
    for node, branch in branches(rewritten):
        lines.append(f"{node.target}:")
        calls = [n for n in ir.calls(branch.compute.graph) if ir.op_name(n) in TOLD]
        lines += [f"    {ir.op_name(n)} : {list(ir.shape(n) or ())}" for n in calls]
    check_golden(f"latte_branches_{cut}", "\n".join(lines) + "\n")


def test_pieces_overview(model: Captured) -> None:
    rewritten, _ = broadcast(
        model.graph_module, analysed(model).sites, lambda site: site.kind != "mlp"
    )
    cut = cut_into_pieces(rewritten)
    lines = []
    for node in cut.graph.find_nodes(op="call_module"):
        compute = cut.get_submodule(str(node.target)).compute
        counts = Counter(n for n in map(ir.op_name, ir.calls(compute.graph)) if n in TOLD)  # type: ignore[union-attr]
        told = ", ".join(f"{counts[name]} {name}" for name in TOLD if counts[name])
        lines.append(f"{node.target}: {told or 'no arithmetic of note'}")
    check_golden("latte_pieces", "\n".join(lines) + "\n")
