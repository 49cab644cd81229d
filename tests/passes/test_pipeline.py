"""The pipeline: passes in order, each watched, each rewrite verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import fx

import helpers.captured as models
from helpers.captured import captured, latents_of, small_dit, time_embedding, tokens_of
from pab_compile.passes.errors import InvariantError, UnsupportedModelError
from pab_compile.passes.pipeline import analysis, rewriting
from pab_compile.passes.program import Program, run_passes


def everything(site: object) -> bool:
    return True


def program_of(function: Callable[..., torch.Tensor]) -> Program:
    return Program(captured(function).graph_module)


@dataclass(frozen=True)
class Lose:
    """A broken pass: it drops everything."""

    name: str = "lose"

    def __call__(self, program: Program) -> int:
        graph = fx.Graph()
        for node in program.graph_module.graph.find_nodes(op="placeholder"):
            last = graph.node_copy(node)
        graph.output((last,))
        program.graph_module = fx.GraphModule(torch.nn.Module(), graph)
        return 1


def test_the_analysis_fills_in_what_each_pass_finds() -> None:
    program = run_passes(program_of(models.cross_attention), analysis({}, "attention"))
    assert program.inferred_axes.latents.name == "latents"
    assert program.clock == "timestep"
    assert [mixer.kind for mixer in program.mixers] == ["cross"]
    assert [site.kind for site in program.sites] == ["cross"]
    assert list(program.seconds) == ["axes", "binding", "classify", "sites"]
    assert all(seconds >= 0 for seconds in program.seconds.values())


def test_the_analysis_leaves_the_graph_as_it_is() -> None:
    program = program_of(models.cross_attention)
    before, nodes = program.graph_module, list(program.graph_module.graph.nodes)
    run_passes(program, analysis({}, "attention"))
    assert program.graph_module is before
    assert list(before.graph.nodes) == nodes


def test_the_whole_pipeline_computes_the_same_bits() -> None:
    model = small_dit(2)
    program = Program(model.graph_module)
    run_passes(program, [*analysis({}, "gated"), *rewriting(everything)])
    assert torch.equal(program.graph_module(*model.args)[0], model.graph_module(*model.args)[0])
    assert {n.op for n in program.graph_module.graph.nodes} <= {
        "placeholder",
        "call_module",
        "call_function",
        "output",
    }


def test_every_pass_says_how_much_it_changed() -> None:
    program = Program(small_dit.__wrapped__(1).graph_module)  # one that no other test has bound
    program_nodes = list(program.graph_module.graph.nodes)
    counts = {step.name: step(program) for step in analysis({}, "attention")}
    counts |= {step.name: step(program) for step in rewriting(everything)}
    assert counts["broadcast"] == 3
    assert counts["binding"] == len(program_nodes)
    assert counts["pieces"] == len(list(program.graph_module.graph.find_nodes(op="call_module")))


def test_a_rewrite_that_breaks_an_invariant_is_stopped() -> None:
    with pytest.raises(InvariantError, match="the outputs changed"):
        run_passes(program_of(models.cross_attention), [Lose()])


def test_every_pass_is_watched_with_the_graph_as_it_is_then() -> None:
    seen: dict[str, tuple[str, str]] = {}

    @contextmanager
    def watch(pass_name: str, text: Callable[[], str]) -> Iterator[None]:
        before = text()
        yield
        seen[pass_name] = (before, text())

    program = program_of(models.cross_attention)
    run_passes(program, [*analysis({}, "attention"), *rewriting(everything)], watch)
    assert list(seen) == ["axes", "binding", "classify", "sites", "broadcast", "pieces"]
    assert "f32[b, t*h*w, c]" not in seen["axes"][0]
    assert "f32[b, t*h*w, c]" in seen["axes"][1]  # names of axes in place of sizes
    assert "branch cross_0" not in seen["broadcast"][0]
    assert "branch cross_0" in seen["broadcast"][1]
    assert "glue_0(" in seen["pieces"][1]


def test_without_attention_the_error_says_what_was_looked_for_and_what_to_do() -> None:
    def model(latents, timestep, w_in, w_time):  # type: ignore[no-untyped-def]
        return latents_of(tokens_of(latents, w_in) + time_embedding(timestep, w_time))

    with pytest.raises(UnsupportedModelError) as caught:
        run_passes(program_of(model), analysis({}, "attention"))
    message = str(caught.value)
    assert "No attention was found" in message
    assert "latents 'latents'" in message
    assert '{"axes": {"<input>": "b c t h w"}}' in message


def test_without_a_site_to_broadcast_the_error_gives_the_reasons() -> None:
    def model(latents, timestep, prompt, w_in, w_time):  # type: ignore[no-untyped-def]
        text = models.attend(prompt, prompt, prompt)
        x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
        return latents_of(x + text.mean(1, keepdim=True))

    with pytest.raises(UnsupportedModelError, match=r"No site .* does not read the latents"):
        run_passes(program_of(model), analysis({}, "attention"))


def test_axes_that_speak_of_time_are_no_axes() -> None:
    program = program_of(models.cross_attention)
    run_passes(program, analysis({"prompt": "step", "timestep": "step"}, "attention"))
    assert [site.kind for site in program.sites] == ["cross"]
