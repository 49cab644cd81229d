"""Several ranks in one process: their graphs are run node by node, collectives by hand.

The graphs of all ranks have the same ops in the same order (sizes may differ), so that a collective
is a step at which the values of all ranks meet. A model is captured once for any number of ranks,
so that a whole generation of theirs costs less than starting them.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from helpers.captured import Captured, analysed
from helpers.latte import assert_same
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import lay_out
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import local_sites
from pab_compile.passes.rewrite.broadcast import StepBranch, branches, broadcast

Cached = dict[str, list[tuple[torch.Tensor, ...]]]
"""Name of a branch -> what it last computed, by rank."""
Env = dict[fx.Node, Any]


def run_ranks(
    graph_modules: Sequence[fx.GraphModule], inputs: Sequence[torch.Tensor]
) -> list[tuple[Any, ...]]:
    """What every rank returns; checks that what is sent is what is awaited."""
    return Lockstep(graph_modules).run(inputs)


class Lockstep:
    """Ranks that denoise together.

    Args:
        graph_modules: the graph of every rank, with branches or without.

    Attributes:
        all_to_alls: how many ran.
    """

    def __init__(self, graph_modules: Sequence[fx.GraphModule]) -> None:
        self._modules = graph_modules
        self.all_to_alls = 0

    def run(
        self,
        inputs: Sequence[torch.Tensor],
        cached: Cached | None = None,
        reuses: Callable[[str], bool] = lambda _: False,
    ) -> list[tuple[Any, ...]]:
        """One step of one lane.

        Args:
            inputs: the same for every rank.
            cached: what the branches of this lane computed last.
            reuses: whether a branch loads its cached output, by its name.
        """
        given = [list(inputs) for _ in self._modules]
        with torch.no_grad():
            return self._graphs(self._modules, given, {} if cached is None else cached, reuses)

    def _graphs(
        self,
        modules: Sequence[fx.GraphModule],
        inputs: Sequence[Sequence[Any]],
        cached: Cached,
        reuses: Callable[[str], bool],
    ) -> list[tuple[Any, ...]]:
        ranks = [list(module.graph.nodes) for module in modules]
        assert len({len(nodes) for nodes in ranks}) == 1, "the ranks' graphs differ in length"
        values: list[Env] = [{} for _ in ranks]
        given = [iter(mine) for mine in inputs]
        for nodes in zip(*ranks, strict=True):
            assert len({(node.op, str(node.target)) for node in nodes}) == 1, nodes
            operands = [
                fx.map_arg((node.args, node.kwargs), env.__getitem__)
                for node, env in zip(nodes, values, strict=True)
            ]
            if nodes[0].op == "output":
                return [tuple(args[0]) for args, _ in operands]
            if nodes[0].op == "call_module":
                name = str(nodes[0].target)
                if not reuses(name):
                    inner = [_branch(module, name) for module in modules]
                    mine = [args for args, _ in operands]
                    cached[name] = self._graphs(inner, mine, cached, reuses)
                results: Sequence[Any] = cached[name]
            elif ir.op_namespace(nodes[0]) == "_c10d_functional":
                results = self._collective(nodes, [args[0] for args, _ in operands])
            else:
                results = [
                    _run(module, node, next(mine) if node.op == "placeholder" else None, *found)
                    for module, node, mine, found in zip(
                        modules, nodes, given, operands, strict=True
                    )
                ]
            for node, env, result in zip(nodes, values, results, strict=True):
                env[node] = result
        raise AssertionError("a graph without an output")

    def _collective(self, nodes: Sequence[fx.Node], operands: Sequence[Any]) -> Sequence[Any]:
        if ir.is_call(nodes[0], "wait_tensor"):
            return operands
        if ir.is_call(nodes[0], "all_reduce"):
            return [torch.stack(list(operands)).sum(0)] * len(operands)
        if ir.is_call(nodes[0], "all_gather_into_tensor"):
            return [torch.cat(list(operands))] * len(operands)
        assert ir.is_call(nodes[0], "all_to_all_single")
        self.all_to_alls += 1
        sent = [x.split(list(node.args[2])) for x, node in zip(operands, nodes, strict=True)]  # type: ignore[arg-type]
        results = []
        for rank, node in enumerate(nodes):
            parts = [parts[rank] for parts in sent]
            assert [len(part) for part in parts] == list(node.args[1])  # type: ignore[arg-type]
            results.append(torch.cat(parts))
        return results


Step = Sequence[Mapping[str, Any]]
"""The arguments of the module at one step, for every lane."""


def check_generations(model: Captured, axis: str, num_ranks: int, steps: Sequence[Step]) -> None:
    """Ranks generate what one does, whatever they reuse, and exchange for nothing of that.

    The first step computes everything, the second nothing, and then a site is reused or not as a
    coin says. With both cuts.
    """
    programs = [analysed(model, cut) for cut in ("attention", "branch")]
    axes, mixers = programs[0].inferred_axes, programs[0].mixers
    shared = dict(candidates(axes))[axis]
    layout = lay_out(model.graph, axes, mixers, shared, num_ranks)
    cross = {node for m in mixers if m.kind == "cross" for node in m.nodes}
    assert not any(cross.intersection(detour.verdicts) for detour in layout.detours)
    uneven = shared.size % num_ranks != 0  # an even gather is no all-to-all
    inside = {node for site in programs[-1].sites for node in site.region}
    always = [n for n in layout.gathers if not inside.issuperset(layout.readers(n))]
    gathers = len(always) * uneven
    others = (len(layout.gathers) - len(always)) * uneven
    crossings = [c for detour in layout.detours for c in (*detour.entering, *detour.leaving)]
    crossings = [crossing for crossing in crossings if not crossing.adds_up]
    exchanges = sum(uneven or crossing.target is not None for crossing in crossings)
    parts = [
        localise(model.graph_module, layout, Ranks(num_ranks, rank)) for rank in range(num_ranks)
    ]
    for program in programs:
        whole, _ = broadcast(model.graph_module, program.sites, lambda _: True)
        local = [
            broadcast(part.graph_module, local_sites(program.sites, part), lambda _: True)[0]
            for part in parts
        ]
        alone, together = Lockstep([whole]), Lockstep(local)
        coin, names = random.Random(num_ranks), [str(node.target) for node, _ in branches(whole)]
        cached: dict[tuple[int, bool], Cached] = {}
        for number, lanes in enumerate(steps):
            tossed = {name for name in names if coin.random() < 0.5}
            reused = (set(), set(names))[number] if number < 2 else tossed
            together.all_to_alls = 0
            for lane, given in enumerate(lanes):
                inputs = inputs_at(model, given)
                mine = [cached.setdefault((lane, one), {}) for one in (True, False)]
                ((expected, *_),) = alone.run(inputs, mine[0], reused.__contains__)
                for found in together.run(inputs, mine[1], reused.__contains__):
                    assert_same(found[0], expected)
                if number == 0:
                    assert_same(expected, replace(model, args=tuple(inputs)).eager()[0])
            if number < 2:
                awaited = gathers if number else gathers + others + exchanges
                assert together.all_to_alls == len(lanes) * awaited


def inputs_at(model: Captured, given: Mapping[str, Any]) -> list[torch.Tensor]:
    """The inputs of a captured graph at another step, by the names of the module's arguments."""
    nodes = ir.placeholders(model.graph)
    return [given.get(ir.source(n), old) for n, old in zip(nodes, model.args, strict=True)]


def _branch(module: fx.GraphModule, name: str) -> fx.GraphModule:
    found = module.get_submodule(name)
    assert isinstance(found, StepBranch)
    return found.compute


def _run(module: fx.GraphModule, node: fx.Node, given: Any, args: Any, kwargs: Any) -> Any:
    if node.op == "placeholder":
        return given
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    assert callable(node.target)
    return node.target(*args, **kwargs)
