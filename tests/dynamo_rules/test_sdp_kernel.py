"""Dynamo follows the deprecated way to choose kernels, for this backend only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.nn.functional import scaled_dot_product_attention

from helpers.collecting import collecting

pytestmark = pytest.mark.filterwarnings("ignore:`torch.backends.cuda.sdp_kernel")


def attention(x: torch.Tensor) -> torch.Tensor:
    with torch.backends.cuda.sdp_kernel(False, enable_mem_efficient=False):
        return scaled_dot_product_attention(x, x, x)


def graphs_of(is_marked: bool) -> list[fx.GraphModule]:
    """What a backend gets."""
    backend, graphs = collecting(is_marked)
    x = torch.randn(1, 2, 40, 8)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(attention, backend=backend)(x), attention(x))
    return graphs


def test_the_graph_has_the_kernels_that_it_allows() -> None:
    (graph_module,) = graphs_of(is_marked=True)
    regions = [n for n in graph_module.graph.nodes if "_sdpa_kernel" in str(n.target)]
    allowed: Any = regions[0].args[0]
    assert {name.args[0] for name in allowed} == {"MATH", "CUDNN_ATTENTION"}
    assert len(regions) == 2


def test_other_backends_see_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs_of(is_marked=True)
    extended = TorchInGraphFunctionVariable.call_function
    ours = [str(graph_module.graph) for graph_module in graphs_of(is_marked=False)]
    monkeypatch.setattr(TorchInGraphFunctionVariable, "call_function", extended.__wrapped__)  # type: ignore[attr-defined]
    assert [str(graph_module.graph) for graph_module in graphs_of(is_marked=False)] == ours
