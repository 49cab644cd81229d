"""How the cost of the capture and of all passes grows with the depth of a model.

    python -m benchmarks.growth                    # Latte with 4, 8, 16 and 32 pairs of blocks
    python -m benchmarks.growth --layers 2 4 8

A pass is linear in nodes if its exponent is 1: the slope of the line through the logarithms of the
cost and of the number of nodes. Two costs are printed. *Visits* are counted: the nodes that loops
over a graph come by, and the calls of the library's functions. *Seconds* are processor time.
`tests/passes/test_growth.py` bounds the visits.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from pab_compile import passes
from pab_compile.compile.collecting import collector_paused
from pab_compile.dynamo import trace_once
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.parallel.shard_tokens import ShardTokens
from pab_compile.passes.pipeline import analysis, rewriting
from pab_compile.passes.program import Pass, Program, run_passes

from .latte import SMALL, Size, make_inputs, make_model

_FOLDER = passes.__path__[0]
Measure = Callable[[Callable[[], Any]], tuple[Any, float]]


def visits(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and how often it comes by a node or calls the library."""
    count = 0

    class Counted:
        def __init__(self, nodes: Any) -> None:
            self._nodes = nodes

        def __len__(self) -> int:
            return len(self._nodes)

        def _counting(self, nodes: Iterator[fx.Node]) -> Iterator[fx.Node]:
            nonlocal count
            for node in nodes:
                count += 1
                yield node

        def __iter__(self) -> Iterator[fx.Node]:
            return self._counting(iter(self._nodes))

        def __reversed__(self) -> Iterator[fx.Node]:
            return self._counting(reversed(self._nodes))

    def called(frame: FrameType, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(_FOLDER)

    nodes_of = fx.Graph.nodes
    fx.Graph.nodes = property(lambda graph: Counted(nodes_of.__get__(graph)))  # type: ignore[assignment]
    sys.setprofile(called)
    try:
        return run(), count
    finally:
        sys.setprofile(None)
        fx.Graph.nodes = nodes_of  # type: ignore[method-assign]


def seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and its processor time."""
    start = time.process_time()
    return run(), time.process_time() - start


def costs(num_layers: int, measure: Measure) -> tuple[int, dict[str, float]]:
    """The number of nodes of a captured Latte, and what each pass costs.

    Args:
        num_layers: number of spatial blocks, and of temporal blocks.
        measure: runs a function, and says what that costs.
    """
    size = Size(num_layers=num_layers, **SMALL)
    with collector_paused():
        dynamo_graph, args = _traced(make_model(size), make_inputs(size))
        found: dict[str, float] = {}
        captured, found["capture"] = measure(lambda: capture(dynamo_graph, args))
        program = Program(captured)
        shard = ShardTokens(Ranks(2, 0, "ranks"), lambda site: 1.0)
        for step in analysis({}, "attention"):
            found[step.name] = measure(_running(program, step))[1]
        found[shard.name] = measure(_running(replace(program), shard))[1]
        for step in rewriting(lambda site: True):
            found[step.name] = measure(_running(program, step))[1]
    return len(captured.graph.nodes), found


def _running(program: Program, step: Pass) -> Callable[[], Program]:
    return lambda: run_passes(program, (step,))


def _traced(
    model: torch.nn.Module, inputs: dict[str, Any]
) -> tuple[fx.GraphModule, Sequence[torch.Tensor]]:
    """The graph that Dynamo makes of a model, with its inputs."""
    found: list[tuple[fx.GraphModule, Sequence[Any]]] = []

    def look(graph_module: fx.GraphModule, args: Sequence[Any]) -> Any:
        found.append((graph_module, args))
        return graph_module.forward(*args)

    with torch.no_grad():
        trace_once(model.forward, (), inputs, look)
    (graph,) = found
    return graph


def exponent(nodes: Sequence[int], cost: Sequence[float]) -> float:
    """The power of the number of nodes that fits best."""
    return statistics.linear_regression([*map(math.log, nodes)], [*map(math.log, cost)]).slope


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 32])
    layers = parser.parse_args().layers
    torch.set_num_threads(1)
    costs(layers[0], seconds)  # what is done once per process
    counted, timed = ([costs(n, measure) for n in layers] for measure in (visits, seconds))
    nodes = [num for num, _ in counted]
    table = Table("pass", "visits^", "seconds^", "visits per node", f"seconds at {layers[-1]}")
    for name in counted[0][1]:
        seen, took = ([found[name] for _, found in each] for each in (counted, timed))
        fitted = [f"{exponent(nodes, each):.2f}" for each in (seen, took)]
        table.add_row(name, *fitted, f"{seen[-1] / nodes[-1]:.0f}", f"{took[-1]:.2f}")
    console = Console()
    console.print(f"Latte with {', '.join(map(str, layers))} pairs of blocks: {nodes} nodes")
    console.print(table)


if __name__ == "__main__":
    main()
