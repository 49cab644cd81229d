"""Pieces: how a rewritten graph is cut for the inner compiler."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

import helpers.captured as models
from helpers.captured import (
    Captured,
    analysed,
    captured,
    latents_of,
    small_dit,
    small_latte,
    tokens_of,
)
from helpers.golden import check_inline
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.graph.structure import structure_key
from pab_compile.passes.rewrite.broadcast import StepBranch, broadcast
from pab_compile.passes.rewrite.pieces import GLUE, PRELUDE, Piece, cut_into_pieces
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.binding import Binding

EVERY_MODEL = [
    models.gated_attention,
    models.mlp_block,
    models.parallel_block,
    models.cross_attention,
    models.two_prompts,
    models.joint_attention,
    models.batch_loop,
    models.no_residual,
    models.widening,
]


# The captures of test_repeats, which are shared in one process.
DEEP = [pytest.mark.slow, pytest.mark.xdist_group("deep latte")]


def cut(model: Captured, kind: str = "attention") -> fx.GraphModule:
    branched, _ = broadcast(model.graph_module, analysed(model, kind).sites, lambda site: True)
    return cut_into_pieces(branched)


def submodules(graph_module: fx.GraphModule) -> dict[str, StepBranch | Piece]:
    found = {}
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        assert isinstance(module, (StepBranch, Piece))
        found[str(node.target)] = module
    return found


def pieces(graph_module: fx.GraphModule, sort: str) -> dict[str, Piece]:
    return {
        name: module
        for name, module in submodules(graph_module).items()
        if isinstance(module, Piece) and module.sort == sort
    }


def ops(piece: StepBranch | Piece) -> list[str]:
    return [ir.op_name(node) for node in ir.calls(piece.compute.graph)]


def num_distinct(graph_module: fx.GraphModule) -> int:
    return len({structure_key(module.compute) for module in submodules(graph_module).values()})


def test_a_model_becomes_preludes_glue_and_branches_in_the_order_in_which_they_run() -> None:
    model = cut(captured(models.cross_attention))
    check_inline(
        "\n".join(
            line
            for line in format_graph(model).splitlines()
            if line.startswith("%") and " = weight " not in line
        ),
        """\
        %latents = input latents : f32[2, 4, 3, 2, 5]
        %timestep = input timestep : f32[2]
        %prompt = input prompt : f32[2, 7, 4]
        %glue_0 = glue glue_0(%latents, %w_in, %timestep, %w_time) : (f32[2, 30, 4])  # at every step
        %add = %glue_0[0] : f32[2, 30, 4]
        %prelude_cross_0 = prelude prelude_cross_0(%prompt, %w_k, %w_v) : 2 x f32[2, 7, 4]  # once per generation and lane
        %linear_3 = %prelude_cross_0[0] : f32[2, 7, 4]
        %linear_4 = %prelude_cross_0[1] : f32[2, 7, 4]
        %cross_0 = branch cross_0(%add, %w_q, %linear_3, %linear_4, %w_out) : (f32[2, 30, 4])  # reuse: load cache | otherwise:
        %linear_5 = %cross_0[0] : f32[2, 30, 4]
        %glue_1 = glue glue_1(%add, %linear_5) : (f32[2, 4, 3, 2, 5])  # at every step
        %permute_1 = %glue_1[0] : f32[2, 4, 3, 2, 5]
        """,  # noqa: E501
    )


@pytest.mark.parametrize("kind", ["attention", "gated"])
@pytest.mark.parametrize("function", EVERY_MODEL, ids=lambda f: f.__name__)
def test_the_pieces_are_sound_and_compute_the_same_bits(
    function: Callable[..., torch.Tensor], kind: str
) -> None:
    model = captured(function)
    found = cut(model, kind)
    verify(found, model.graph_module)
    for mine, expected in zip(found(*model.args), model.eager(), strict=True):
        assert torch.equal(mine, expected)


def test_nothing_but_inputs_calls_and_picks_is_left() -> None:
    for node in cut(small_dit(2)).graph.nodes:
        assert node.op in ("placeholder", "call_module", "output") or ir.is_getitem(node)


def test_the_graph_that_is_cut_is_not_changed() -> None:
    model = small_dit(1)
    branched, _ = broadcast(model.graph_module, analysed(model).sites, lambda site: True)
    before = format_graph(branched)
    cut_into_pieces(branched)
    assert format_graph(branched) == before


@pytest.mark.sample("own")
@pytest.mark.parametrize(
    "build",
    [small_dit, pytest.param(small_latte, marks=DEEP)],
    ids=["own", "latte"],
)
def test_the_number_of_distinct_pieces_does_not_depend_on_depth(
    build: Callable[[int], Captured],
) -> None:
    found = [cut(build(depth)) for depth in (2, 4, 6)]
    sizes = [len(submodules(model)) for model in found]
    assert sizes[0] < sizes[1] < sizes[2]
    distinct = {num_distinct(model) for model in found}
    assert len(distinct) == 1
    assert distinct.pop() < sizes[0]


def test_no_piece_grows_with_depth() -> None:
    largest = [
        max(len(ops(module)) for module in submodules(cut(small_dit(depth))).values())
        for depth in (2, 4)
    ]
    assert largest[0] == largest[1]


def test_the_modulation_of_a_layer_sinks_to_the_section_that_uses_it_first() -> None:
    found = pieces(cut(small_dit(3)), GLUE)
    tables = [name for name, piece in found.items() if "silu" in ops(piece)]
    assert tables == ["glue_0", "glue_3", "glue_6"]
    assert all(ops(found[name]).count("silu") == 1 for name in tables)


def test_work_on_the_prompt_is_in_preludes_and_nowhere_else() -> None:
    model = cut(small_dit(2))
    names = list(pieces(model, PRELUDE))
    assert "prelude" in names  # the prompt's projection, which both layers read
    assert len([name for name in names if name.startswith("prelude_cross")]) == 2  # keys, values
    for name, module in submodules(model).items():
        early = [n for n in ir.calls(module.compute.graph) if ir.binding(n) == Binding.PROMPT]
        assert (early != []) == (name in names and "arange" not in ops(module)), name


def test_a_prelude_reads_nothing_that_changes() -> None:
    model = cut(small_dit(2))
    for node in model.graph.find_nodes(op="call_module"):
        if str(node.target).startswith(PRELUDE):
            assert all(ir.binding(source) <= Binding.PROMPT for source in node.all_input_nodes)


def test_an_input_stated_as_step_is_not_held() -> None:
    model = captured(models.cross_attention)
    program = analysed(model, axes={"prompt": "step"})
    branched, _ = broadcast(model.graph_module, program.sites, lambda site: True)
    assert pieces(cut_into_pieces(branched), PRELUDE) == {}


def test_a_multi_output_op_and_its_values_stay_in_one_piece() -> None:
    model = cut(small_dit(3))
    for node in model.graph.nodes:
        if ir.is_getitem(node):
            (source,) = node.all_input_nodes
            assert source.op == "call_module"
    for module in submodules(model).values():
        for node in ir.placeholders(module.compute.graph):
            assert ir.tensor(node) is not None


def test_views_and_casts_of_weights_are_not_held() -> None:
    def model(latents, timestep, w_in, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        x = x + models.attend(x, x, x) @ w_out.transpose(0, 1)
        return latents_of(x + torch.sin(timestep)[:, None, None])

    found = cut(captured(model))
    assert pieces(found, PRELUDE) == {}
    assert any("transpose" in ops(module) for module in submodules(found).values())


def test_a_view_of_a_weight_that_is_read_once_and_at_every_step_stands_before_both() -> None:
    def model(latents, timestep, w_in, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        x = x + torch.sin(timestep)[:, None, None]
        turned = w_out.t()
        x = x @ turned * turned.sum(0)
        return latents_of(x + models.attend(x, x, x))

    found = captured(model)
    cut_graph = cut(found)
    assert [ops(piece) for piece in pieces(cut_graph, PRELUDE).values()] == [["t", "sum"]]
    assert torch.equal(cut_graph(*found.args)[0], found.eager()[0])


def test_arithmetic_on_weights_is_done_once() -> None:
    def model(latents, timestep, w_in, w_out):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        x = (x + models.attend(x, x, x)) @ (w_out * 2)
        return latents_of(x + torch.sin(timestep)[:, None, None])

    assert [ops(piece) for piece in pieces(cut(captured(model)), PRELUDE).values()] == [["mul"]]


def test_a_graph_without_branches_is_one_section() -> None:
    model = captured(models.gated_attention)
    analysed(model)
    found = cut_into_pieces(model.graph_module)
    assert list(submodules(found)) == ["glue_0"]
    assert torch.equal(found(*model.args)[0], model.eager()[0])
