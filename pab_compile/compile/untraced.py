"""Untraced graphs: a Dynamo graph as one branch, where no graph of plain ops expresses it.

Such a graph gives weights other memory as hooks do, switches autocast in a way that
``passes.graph.autocast`` refuses, or fails to be captured. With ``cut="output"`` this is no
obstacle: the inner compiler gets the graph as Dynamo made it.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.errors import InvariantError, PabError, UnsupportedModelError
from pab_compile.passes.errors import NotTracedError
from pab_compile.passes.graph.inputs import Inputs, with_constant_numbers
from pab_compile.passes.graph.tracing import module_of
from pab_compile.passes.graph.wrapped import mesh_of
from pab_compile.passes.rewrite.broadcast import StepBranch
from pab_compile.passes.sites.site import OUTPUT, Site
from pab_compile.runtime.clock import version_of

from .lazy_function import Function


class UntracedBranch(StepBranch):
    """A Dynamo graph as a branch.

    Attributes:
        key: identifies the graph. Its structure has no key of its own.
    """

    def __init__(self, site: Site, compute: fx.GraphModule, num_outputs: int) -> None:
        super().__init__(site, compute, (None,) * num_outputs)
        self.key = f"untraced {id(compute)}"

    def watched(self, function: Function) -> Function:
        """The compiled graph, which must not write to tensors: a reuse would not write.

        Weights may get other memory, as hooks give them.

        Raises:
            UnsupportedModelError: it did.
        """
        held = _held(self.compute)

        def run(*inputs: torch.Tensor) -> Sequence[torch.Tensor]:
            before = [version_of(tensor) for tensor in (*inputs, *held)]
            outputs = function(*inputs)
            for tensor, version in zip((*inputs, *held), before, strict=True):
                if not isinstance(tensor, torch.nn.Parameter) and version_of(tensor) != version:
                    raise UnsupportedModelError(
                        "The model writes to a buffer or an input "
                        f"({tuple(tensor.shape)}, {tensor.dtype}) in a graph that cannot be "
                        "traced, so a step that reuses its output would not write. "
                        'Leave this model to another backend, or use options={"ranges": {}}.'
                    )
            return outputs

        return run


def _held(graph_module: fx.GraphModule) -> list[torch.Tensor]:
    """The tensors that a graph holds itself."""
    modules = [m for m in graph_module.modules() if isinstance(m, fx.GraphModule)]
    values = [
        operator.attrgetter(str(node.target))(module)
        for module in modules
        for node in module.graph.find_nodes(op="get_attr")
    ]
    return [value for value in values if isinstance(value, torch.Tensor)]


def may_be_whole(error: Exception) -> bool:
    """Whether a graph that was not captured for this reason may run as it is.

    If a pass fails, nothing is wrong with the graph.
    """
    is_defect = isinstance(error, InvariantError) or not isinstance(error, PabError)
    return is_defect or isinstance(error, NotTracedError)


def untraced(dynamo_graph: fx.GraphModule, args: Sequence[Any]) -> fx.GraphModule | None:
    """A graph of one branch that runs a whole Dynamo graph; None if that is impossible.

    It must return tensors, and have none whose parts are on several ranks.

    Args:
        dynamo_graph: the graph.
        args: Dynamo's inputs. The tensors among them are the inputs of the result.
    """
    if any(mesh_of(arg) is not None for arg in args):
        return None
    inputs = Inputs.of(dynamo_graph, args)
    whole = with_constant_numbers(dynamo_graph, inputs, args)
    returned = whole.graph.output_node().args[0]
    if not isinstance(returned, (list, tuple)):
        return None
    examples = [n.meta.get("example_value") if isinstance(n, fx.Node) else None for n in returned]
    tensors = [example for example in examples if isinstance(example, torch.Tensor)]
    if len(tensors) < len(returned):
        return None
    site = Site(
        name=OUTPUT,
        kind=OUTPUT,
        mechanism=OUTPUT,
        module="",
        query_axes=(),
        key_axes=(),
        cut=tuple(dict.fromkeys(n for n in returned if isinstance(n, fx.Node))),
        region=(),
        cache_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        flops=0,
        reason="the graph as a whole: it could not be traced, so its operations are not counted",
    )
    graph = fx.Graph()
    given = [graph.placeholder(node.name) for node in whole.graph.find_nodes(op="placeholder")]
    call = graph.call_module(OUTPUT, tuple(given))
    values = [graph.call_function(operator.getitem, (call, i)) for i in range(len(returned))]
    graph.output(tuple(values))
    return module_of({OUTPUT: UntracedBranch(site, whole, len(returned))}, graph)
