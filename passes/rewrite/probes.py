"""Probes: the graph also returns samples of what each branch caches, and of its outputs.

Before::

    %o = branch o(%x, ...)
    return (%y,)

After::

    %o = branch o(%x, ...)
    %probe = take(%o, %probed_0)
    %result = take(%y, %probed_1)
    return (%y, %probe, %result)

The positions are drawn once per size, at random without replacement. So they are the same at every
step and in equal blocks. For any function of the steps, the mean over the samples is an unbiased
estimate of the mean over all elements. Its relative standard deviation is about
``sqrt(2 / num_samples)`` for squares of normal values. It is larger if a few elements are much
larger than the rest. A tensor with fewer elements is taken as a whole. A sample reads only the
elements that it takes, whereas a random projection would read all.

The ops of the graph do not change. Only outputs are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.outline import copy_graph
from pab_compile.passes.graph.walk import picks
from pab_compile.passes.sites.binding import Binding

from .broadcast import branches

_ATEN = torch.ops.aten
_BUFFER = "probed_"
_SEED = 0


def insert_probes(graph_module: fx.GraphModule, num_samples: int) -> tuple[fx.GraphModule, int]:
    """Append one output per branch, in their order, and one for the outputs of the graph.

    Each is float32 of shape ``[samples]``. Outputs that are not floating point numbers are not
    sampled. If no others exist, their probe is left out.

    Args:
        graph_module: a graph with branches (``passes.rewrite.broadcast``); not modified. A graph
            that has probes is returned as it is.
        num_samples: the most elements to take of what one branch caches, and of the outputs.

    Returns:
        The graph with probes, and their number.
    """
    attributes = graph_module.graph.find_nodes(op="get_attr")
    if any(str(node.target).startswith(_BUFFER) for node in attributes):
        return graph_module, 0
    probed = copy_graph(graph_module)
    output = ir.output_node(probed.graph)
    sampler = _Sampler(probed)
    probes = []
    cached = [picks(call) for call, _ in branches(probed)]
    returned = [node for node in ir.outputs(probed.graph) if _is_floating(node)]
    for values in (*cached, *([returned] if cached and returned else [])):
        with probed.graph.inserting_before(output):
            shares = _shares(values, num_samples)
            samples = [sampler.take(v, n) for v, n in zip(values, shares, strict=True)]
            if len(samples) > 1:
                samples = [_call(probed.graph, _ATEN.cat.default, samples)]
        probes += samples
    output.args = ((*output.args[0], *probes),)  # type: ignore[misc]
    probed.recompile()
    return probed, len(probes)


class _Sampler:
    """Takes samples of values of a graph. Equal sizes share one buffer of positions."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._graph_module = graph_module
        nodes = graph_module.graph.nodes
        self._first = next(node for node in nodes if node.op != "placeholder")
        self._positions: dict[tuple[int, int, torch.device], fx.Node] = {}

    def take(self, value: fx.Node, count: int) -> fx.Node:
        """Append the samples of a value, as float32."""
        graph, tensor = self._graph_module.graph, ir.tensor(value)
        assert tensor is not None, value
        key = (tensor.numel(), count, tensor.device)
        if key not in self._positions:
            self._positions[key] = self._add_positions(tensor, count)
        taken = _call(graph, _ATEN.take.default, value, self._positions[key])
        if tensor.dtype == torch.float32:
            return taken
        return _call(graph, _ATEN._to_copy.default, taken, dtype=torch.float32)

    def _add_positions(self, tensor: torch.Tensor, count: int) -> fx.Node:
        """Add a buffer of positions in a tensor, at the beginning of the graph."""
        name = f"{_BUFFER}{len(self._positions)}"
        drawn = _draw(tensor.numel(), count, tensor.device)
        self._graph_module.register_buffer(name, drawn, persistent=False)
        with self._graph_module.graph.inserting_before(self._first):
            node = self._graph_module.graph.get_attr(name)
        ir.set_value(node, tensor.new_empty(count, dtype=torch.long))
        ir.set_binding(node, Binding.CONSTANT)
        return node


def verify_probes(after: fx.GraphModule, before: fx.GraphModule) -> None:
    """Check that a graph with probes is the graph without them, with further outputs.

    Raises:
        InvariantError: a node of the graph, or one of its outputs, is not what it was.
    """
    after.graph.lint()
    nodes = {node.name: node for node in after.graph.nodes}
    for node in before.graph.nodes:
        twin = nodes.get(node.name)
        if twin is None or (twin.op, twin.target) != (node.op, node.target):
            raise InvariantError(f"{node.name} is not what it was before probes were inserted")
        new, old = (_read(n, len(_operands(node))) for n in (twin, node))
        if new != old:
            raise InvariantError(f"{node.name} read {old} before probes were inserted, now {new}")


def _is_floating(node: fx.Node) -> bool:
    tensor = ir.tensor(node)
    return tensor is not None and tensor.is_floating_point()


def _operands(node: fx.Node) -> Sequence[object]:
    return node.args[0] if node.op == "output" else node.args  # type: ignore[return-value]


def _read(node: fx.Node, count: int) -> str:
    return f"{tuple(_operands(node)[:count])} {node.kwargs}"


def _shares(values: Sequence[fx.Node], num_samples: int) -> list[int]:
    """How many elements to take of each tensor, in proportion to its size."""
    sizes = [tensor.numel() for node in values if (tensor := ir.tensor(node)) is not None]
    if sum(sizes) <= num_samples:
        return sizes
    return [max(1, num_samples * size // sum(sizes)) for size in sizes]


def _draw(size: int, count: int, device: torch.device) -> torch.Tensor:
    if count == size:
        return torch.arange(size, device=device)
    # Drawn on the CPU, so that every device and rank draws the same; sorted, to read in order.
    generator = torch.Generator().manual_seed(_SEED)
    drawn = torch.randint(size, (2 * count,), generator=generator).unique()
    while len(drawn) < count:
        more = torch.randint(size, (2 * count,), generator=generator)
        drawn = torch.cat([drawn, more]).unique()
    kept = torch.randperm(len(drawn), generator=generator)[:count]
    return drawn[kept].sort().values.to(device)


def _call(
    graph: fx.Graph, target: torch._ops.OpOverload, *args: object, **kwargs: object
) -> fx.Node:
    node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]
    fakes = fx.map_arg(args, ir.value)  # type: ignore[arg-type]
    ir.set_value(node, target(*fakes, **kwargs))  # type: ignore[misc]
    ir.set_binding(node, Binding.LATENT)
    return node
