"""Several ranks in one process: their graphs are run node by node, collectives by hand.

The graphs of all ranks have the same ops in the same order (sizes may differ), so that a collective
is a step at which the values of all ranks meet.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes import ir


def run_ranks(
    graph_modules: Sequence[fx.GraphModule], inputs: Sequence[torch.Tensor]
) -> list[tuple[Any, ...]]:
    """What every rank returns; checks that what is sent is what is awaited."""
    ranks = [list(module.graph.nodes) for module in graph_modules]
    assert len({len(nodes) for nodes in ranks}) == 1, "the ranks' graphs differ in length"
    values: list[dict[fx.Node, Any]] = [{} for _ in ranks]
    given = [iter(inputs) for _ in ranks]
    for nodes in zip(*ranks, strict=True):
        assert len({(node.op, str(node.target)) for node in nodes}) == 1, nodes
        if nodes[0].op == "output":
            return [
                tuple(fx.map_arg(node.args[0], env.__getitem__))  # type: ignore[arg-type]
                for node, env in zip(nodes, values, strict=True)
            ]
        if ir.op_namespace(nodes[0]) == "_c10d_functional":
            results = _collective(nodes, values)
        else:
            results = [
                _run(module, node, env, mine)
                for module, node, env, mine in zip(graph_modules, nodes, values, given, strict=True)
            ]
        for node, env, result in zip(nodes, values, results, strict=True):
            env[node] = result
    raise AssertionError("a graph without an output")


def _run(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], given: Any) -> Any:
    if node.op == "placeholder":
        return next(given)
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(module)
    assert callable(node.target)
    args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
    return node.target(*args, **kwargs)


def _collective(nodes: Sequence[fx.Node], values: Sequence[dict[fx.Node, Any]]) -> list[Any]:
    operands = [env[node.args[0]] for node, env in zip(nodes, values, strict=True)]  # type: ignore[index]
    if ir.is_call(nodes[0], "wait_tensor"):
        return operands
    if ir.is_call(nodes[0], "all_gather_into_tensor"):
        return [torch.cat(operands)] * len(operands)
    assert ir.is_call(nodes[0], "all_to_all_single")
    sent = [x.split(list(node.args[2])) for x, node in zip(operands, nodes, strict=True)]  # type: ignore[arg-type]
    results = []
    for rank, node in enumerate(nodes):
        parts = [parts[rank] for parts in sent]
        assert [len(part) for part in parts] == list(node.args[1])  # type: ignore[arg-type]
        results.append(torch.cat(parts))
    return results
