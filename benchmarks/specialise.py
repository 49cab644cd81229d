"""Specialise: one whole graph per reuse pattern, the best that a compiler could do with it.

The rewritten graph is put together again without its seams: computed branches are inlined, reused
branches and everything that is computed once per generation become inputs. What is left is exactly
the arithmetic that ``pab`` runs at a step of this pattern, in one graph, for one compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.compile.lower import PieceCompiler
from pab_compile.compile.progress import CompileProgress
from pab_compile.options import parse_options
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.pipeline import analysis, rewriting
from pab_compile.passes.program import Program, run_passes
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.rewrite.pieces import PRELUDE, Piece


@dataclass(frozen=True)
class Rewritten:
    """A model's graph in pieces and branches, with the inputs that it was called with."""

    graph_module: fx.GraphModule
    inputs: list[torch.Tensor]


@dataclass(frozen=True)
class Specialised:
    """A whole graph for one pattern.

    Attributes:
        run: computes the step; takes nothing, the inputs are bound.
        num_cached: number of tensors that are inputs instead of being computed.
    """

    run: Callable[[], Sequence[torch.Tensor]]
    num_cached: int


def rewrite(
    model: torch.nn.Module, inputs: Mapping[str, Any], options: Mapping[str, Any]
) -> Rewritten:
    """Captures a model and runs the passes of the backend on it, without compiling anything."""
    seen: list[tuple[fx.GraphModule, Sequence[Any]]] = []

    def backend(graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen.append((graph_module, args))
            return graph_module(*args)

        return call

    def traced(**kwargs: Any) -> Any:
        return model(**kwargs)

    with torch.no_grad():
        torch.compile(traced, backend=backend, fullgraph=True)(**inputs)
    graph_module, args = seen[0]
    parsed = parse_options(options)
    plan = parsed.make_plan()
    wanted = rewriting(lambda site: site.kind != "mlp" or plan.may_reuse(site))
    program = Program(capture(graph_module, args))
    run_passes(program, (*analysis(parsed.axes, parsed.cut), *wanted))
    return Rewritten(program.graph_module, Inputs.of(graph_module, args).tensors(args))


def specialise(rewritten: Rewritten, reused_kinds: frozenset[str]) -> Specialised:
    """Compiles the whole graph of a step that reuses these kinds.

    Args:
        rewritten: the graph in pieces.
        reused_kinds: kinds whose branches are inputs.

    Raises:
        AssertionError: the specialised graph does not give the numbers of the original.
    """
    cut = rewritten.graph_module
    given = _given_values(cut, reused_kinds)
    recorder = _Recorder(cut, given)
    with torch.no_grad():
        expected = recorder.run(*rewritten.inputs)
    whole = _without_seams(cut, given, reused_kinds)
    inputs = [*rewritten.inputs, *(recorder.values[node] for node in given)]
    compiler = PieceCompiler("inductor", None, CompileProgress())
    with torch.no_grad():
        compiled = compiler.compile_whole(whole, inputs)
        for ours, theirs in zip(compiled(*inputs), expected, strict=True):
            error = float((ours - theirs).abs().max() / theirs.abs().max())
            assert error < 1e-3, f"the specialised graph is wrong: {error:.1e} relative"
    return Specialised(lambda: compiled(*inputs), len(given))


def _given_values(cut: fx.GraphModule, reused_kinds: frozenset[str]) -> list[fx.Node]:
    """Values that a step of this pattern does not compute but its computed pieces read."""
    given = []
    for node in cut.graph.nodes:
        if node.op == "call_function" and _is_given(cut, node.args[0], reused_kinds):
            readers = [user for user in node.users if not _is_given(cut, user, reused_kinds)]
            if readers:
                given.append(node)
    return given


def _is_given(cut: fx.GraphModule, node: Any, reused_kinds: frozenset[str]) -> bool:
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    module = cut.get_submodule(str(node.target))
    if isinstance(module, StepBranch):
        return module.site.kind in reused_kinds
    return isinstance(module, Piece) and module.sort == PRELUDE


def _without_seams(
    cut: fx.GraphModule, given: Sequence[fx.Node], reused_kinds: frozenset[str]
) -> fx.GraphModule:
    """Inlines every piece; the given values become inputs after the original ones."""
    graph = fx.Graph()
    known: dict[fx.Node, Any] = {}
    for node in [*cut.graph.find_nodes(op="placeholder"), *given]:
        known[node] = graph.placeholder(node.name)
    for node in cut.graph.nodes:
        owner = node.args[0] if node.op == "call_function" else node
        if node in known or _is_given(cut, owner, reused_kinds):
            continue
        if node.op == "call_module":
            compute = cut.get_submodule(str(node.target)).compute
            assert isinstance(compute, fx.GraphModule)
            inner = dict(
                zip(
                    compute.graph.find_nodes(op="placeholder"),
                    (known[n] for n in node.args),  # type: ignore[index]
                    strict=True,
                )
            )
            assert not compute.graph.find_nodes(op="get_attr"), "pieces take tensors as inputs"
            known[node] = graph.graph_copy(compute.graph, inner)
        elif node.op == "call_function":
            known[node] = known[node.args[0]][node.args[1]]
        elif node.op == "get_attr":
            known[node] = graph.get_attr(node.target)
        else:
            graph.output(tuple(known[n] if isinstance(n, fx.Node) else n for n in node.args[0]))
    graph.eliminate_dead_code()
    graph.lint()
    return fx.GraphModule(dict(cut.named_buffers(recurse=False)), graph)


class _Recorder(fx.Interpreter):
    """Runs a graph as it is and keeps some of its values."""

    def __init__(self, graph_module: fx.GraphModule, kept: Sequence[fx.Node]) -> None:
        super().__init__(graph_module)
        self._kept = set(kept)
        self.values: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._kept:
            self.values[n] = value
        return value
