"""A Dynamo graph as one branch: what it writes to must not be left out."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from pab_compile.compile.untraced import UntracedBranch
from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.sites.site import OUTPUT, Site


def graph_with(writes: bool, nested: bool) -> fx.GraphModule:
    """Adds a tensor that the graph holds, which it may count up first."""
    name = "inner.held" if nested else "held"
    root = torch.nn.Module()
    owner = torch.nn.Module() if nested else root
    owner.register_buffer("held", torch.zeros(2))
    if nested:
        root.inner = owner
    graph = fx.Graph()
    x, held = graph.placeholder("x"), graph.get_attr(name)
    if writes:
        graph.call_method("add_", (held, 1))
    graph.output((graph.call_function(torch.add, (x, held)),))
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize("nested", [False, True])
def test_a_write_to_a_tensor_of_the_graph_is_an_error(nested: bool) -> None:
    site = Site(OUTPUT, OUTPUT, OUTPUT, "", (), (), (), (), 0, 0, "")
    for writes in (False, True):
        graph = graph_with(writes, nested)
        run = UntracedBranch(site, graph, 1).watched(graph.forward)
        if writes:
            with pytest.raises(UnsupportedModelError, match="writes to a buffer"):
                run(torch.ones(2))
        else:
            assert torch.equal(run(torch.ones(2))[0], torch.ones(2))
