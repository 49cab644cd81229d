"""Which inputs of a Dynamo graph its programs depend on."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph.inputs import Inputs


def test_sizes_that_no_number_shows_distinguish_programs() -> None:
    found: list[tuple[Any, ...]] = []

    def look(graph_module: fx.GraphModule, _: Any) -> Any:
        def run(*args: Any) -> Any:
            found.append(Inputs.of(graph_module, args).specialisation(args))
            return graph_module(*args)

        return run

    double = torch.compile(lambda x: x * 2, backend=look, dynamic=True)
    for size in (3, 5):
        double(torch.ones(2, size))
    assert len(set(found)) == 2
