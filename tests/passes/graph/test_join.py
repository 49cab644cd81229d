"""Graphs of one forward are analysed as one: what crosses a break keeps its meaning."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from helpers.captured import (
    BATCH,
    Captured,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
    values,
)
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Eager, Given, Made, Part, join
from pab_compile.passes.pipeline import recognition
from pab_compile.passes.program import Program, narrow, run_passes
from pab_compile.passes.sites.binding import Binding


def embedding(
    latents: torch.Tensor, timestep: torch.Tensor, w_in: torch.Tensor, w_time: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return tokens_of(latents, w_in), time_embedding(timestep, w_time)


def block(
    tokens: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, w_out: torch.Tensor
) -> torch.Tensor:
    x = tokens + linear(attend(tokens * emb, tokens, tokens), w_out)
    return latents_of(x + linear(attend(x, text, text), w_out))


def parts(text: Given | Eager, volatile: frozenset[int] = frozenset()) -> tuple[Captured, Part]:
    """A block behind an embedding that lies in a graph of its own."""
    first = captured(embedding)
    made = Part(first.graph_module, (Given("latents"), Given("timestep"), None, None))
    tokens, emb = first.eager()
    later = captured(block, tokens=tokens, emb=emb, text=values(BATCH, 7, 4))
    origins = (Made(made, 0), Made(made, 1), text, None)
    return later, Part(later.graph_module, origins, volatile)


def recognised(part: Part) -> Program:
    joined = join(part)
    return narrow(
        run_passes(Program(joined.graph_module), recognition({})), joined, part.graph_module
    )


def test_a_graph_behind_another_knows_the_axes_of_what_it_gets() -> None:
    model, part = parts(Given("prompt"))
    program = recognised(part)
    assert program.inferred_axes.names(model.node("tokens")) == ("b", "t*h*w", "c")
    assert [mixer.kind for mixer in program.mixers] == ["full", "cross"]
    assert program.graph_module is model.graph_module
    assert all(node.graph is model.graph for mixer in program.mixers for node in mixer.nodes)


def test_a_graph_behind_another_knows_when_its_inputs_are_known() -> None:
    model, part = parts(Given("prompt"))
    program = recognised(part)
    found = {name: ir.binding(model.node(name)) for name in ("tokens", "emb", "text", "w_out")}
    assert found == {
        "tokens": Binding.LATENT,
        "emb": Binding.STEP,
        "text": Binding.PROMPT,
        "w_out": Binding.CONSTANT,
    }
    assert (program.clock, program.prompt_inputs, program.has_eager_inputs) == (
        "timestep",
        ("prompt",),
        False,
    )


def test_what_python_made_in_between_changes_at_every_step_and_is_a_source_of_its_own() -> None:
    model, part = parts(Eager(0))
    program = recognised(part)
    assert ir.binding(model.node("text")) is Binding.STEP
    assert [mixer.kind for mixer in program.mixers] == ["full", "cross"]
    assert (program.prompt_inputs, program.has_eager_inputs) == ((), True)


def test_what_may_change_without_notice_changes_at_every_step() -> None:
    first = captured(lambda prompt, w_in: linear(prompt, w_in))
    made = Part(first.graph_module, (Given("prompt"), None))
    for volatile, when in ((frozenset[int](), Binding.PROMPT), (frozenset([2]), Binding.STEP)):
        later, part = parts(Given("prompt"))
        origins = (*part.origins[:2], Made(made, 0), None)
        recognised(Part(later.graph_module, origins, volatile))
        assert ir.binding(later.node("text")) is when


def test_an_output_of_another_shape_is_not_taken_for_the_input() -> None:
    first = captured(lambda prompt, w_in: linear(prompt, w_in).flatten(1))
    made = Part(first.graph_module, (Given("prompt"), None))
    later, part = parts(Given("prompt"))
    recognised(Part(later.graph_module, (*part.origins[:2], Made(made, 0), None)))
    assert ir.binding(later.node("text")) is Binding.STEP


def test_a_graph_that_only_the_caller_feeds_is_left_as_it_is() -> None:
    model = captured(embedding)
    part = Part(model.graph_module, (Given("latents"), Given("timestep"), None, None))
    joined = join(part)
    assert joined.graph_module is model.graph_module


def test_joined_graphs_compute_what_the_graphs_compute_one_after_the_other() -> None:
    later, part = parts(Given("prompt"))
    joined = join(part)
    inputs = captured(embedding)
    given = {
        ir.source(node): arg
        for model in (inputs, later)
        for node, arg in zip(ir.placeholders(model.graph), model.args, strict=True)
    }
    given["prompt"] = given.pop("text")
    args = [given[ir.source(node)] for node in ir.placeholders(joined.graph_module.graph)]
    with torch.no_grad():
        (result,) = joined.graph_module(*args)
    torch.testing.assert_close(result, later.eager()[0], atol=0, rtol=0)
