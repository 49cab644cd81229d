"""The whole output of a graph as one site."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from helpers.captured import Captured, analysed, captured, cross_attention, usual
from helpers.golden import check_golden
from helpers.latte import assert_same
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import diff_text, format_graph
from pab_compile.passes.pipeline import rewriting
from pab_compile.passes.program import run_passes
from pab_compile.passes.rewrite.broadcast import branches, broadcast
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.binding import Binding
from pab_compile.passes.sites.whole import whole_site


def rewritten(model: Captured) -> Any:
    """The graph with its one branch."""
    (site,) = analysed(model, "output").sites
    done, count = broadcast(model.graph_module, [site], lambda site: True)
    assert count == 1
    verify(done, model.graph_module)
    return done


def test_what_is_the_same_at_every_step_stays_outside() -> None:
    model = captured(cross_attention)
    done = rewritten(model)
    check_golden("whole_output", diff_text(format_graph(model.graph_module), format_graph(done)))
    assert_same(done(*model.args)[0], model.eager()[0], 0.0)
    (site,) = analysed(model, "output").sites
    assert (site.kind, site.cut) == ("output", tuple(ir.outputs(model.graph)))
    assert site.cache_bytes == ir.num_bytes(site.cut[0])


def test_in_bfloat16_it_is_the_same() -> None:
    names = [node.name for node in captured(cross_attention).graph.find_nodes(op="placeholder")]
    low = captured(cross_attention, **{name: usual(name).bfloat16() for name in names})
    assert torch.equal(rewritten(low)(*low.args)[0], low.eager()[0])


def test_a_second_run_changes_nothing() -> None:
    model = captured(cross_attention)
    program = run_passes(analysed(model, "output"), rewriting(lambda site: True))
    before = format_graph(program.graph_module)
    again, count = broadcast(program.graph_module, program.sites, lambda site: True)
    assert (count, format_graph(again)) == (0, before)
    assert len(branches(program.graph_module)) == 1


def two_outputs(
    latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, w_in: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Two values of the latents, the prompt's, an input as it is, and a count of positive ones."""
    x = linear(latents.movedim(1, -1), w_in) * torch.sin(timestep)[:, None, None, None, None]
    return x, x.sum(-1), prompt * 2, latents, (x > 0).sum()


def test_all_that_the_step_changes_is_cached() -> None:
    model = captured(two_outputs)
    graph = analysed(captured(cross_attention), "output").graph_module.graph  # for its bindings
    assert any(ir.binding(node) == Binding.PROMPT for node in graph.nodes)
    for node in model.graph.nodes:
        ir.set_binding(node, Binding.PROMPT if "prompt" in str(node.args) else Binding.LATENT)
    site = whole_site(model.graph_module)
    returned = ir.outputs(model.graph)
    assert site.cut == (returned[0], returned[1], returned[4])


def test_what_is_written_to_an_input_is_not_cached() -> None:
    model = captured(two_outputs)
    for node in model.graph.nodes:
        ir.set_binding(node, Binding.LATENT)
    ir.set_mutated_inputs(model.graph_module, (0, 1))
    returned = ir.outputs(model.graph)
    assert whole_site(model.graph_module).cut == (returned[2], returned[4])


def test_a_graph_that_returns_nothing_new_has_no_cut() -> None:
    model = captured(two_outputs)
    for node in model.graph.nodes:
        ir.set_binding(node, Binding.PROMPT)
    site = whole_site(model.graph_module)
    assert not site.can_broadcast
    assert "returns nothing of this sort" in site.reason


def test_what_is_written_and_returned_is_not_cached_either() -> None:
    def model(latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        new = latents + 1
        return new, new, new * 2

    made = captured(model)
    for node in made.graph.nodes:
        ir.set_binding(node, Binding.LATENT)
    ir.set_mutated_inputs(made.graph_module, (0,))
    new, twice = ir.outputs(made.graph)
    site = whole_site(made.graph_module)
    assert (site.cut, site.region) == ((twice,), (twice,))
    assert new not in site.region
