"""The whole output as one site: what a graph returns is cached, and nothing need be recognised.

With ``cut="output"``::

    %y = ...(%latents, %timestep, %prompt)    # region: everything that the step or latents change
    return %y                                 # cut

A step that reuses computes nothing of the graph. What the graph writes to its inputs is computed at
every step, with all that it needs.
"""

from __future__ import annotations

from torch import fx

from pab_compile.passes.graph import ir

from .binding import Binding
from .find_sites import with_region
from .regions import dead_regions
from .site import OUTPUT, Site

_REASON = "everything that the graph returns and that is not the same at every step"


def whole_site(graph_module: fx.GraphModule) -> Site:
    """The site of a whole graph with binding times. Without outputs to cache it has no cut."""
    graph = graph_module.graph
    values = ir.output_node(graph).args[0]
    assert isinstance(values, (list, tuple))
    num_written = len(ir.mutated_inputs(graph_module))
    cut = tuple(
        node
        for node in dict.fromkeys(values[num_written:])
        if isinstance(node, fx.Node)
        and ir.is_plain_call(node)
        and node not in values[:num_written]
        and ir.tensor(node) is not None
        and ir.binding(node) >= Binding.STEP
    )
    site = Site(
        name=OUTPUT,
        kind=OUTPUT,
        mechanism=OUTPUT,
        module="",
        query_axes=(),
        key_axes=(),
        cut=cut,
        region=(),
        cache_bytes=0,
        flops=0,
        reason=_REASON if cut else f"{_REASON}; not broadcast: it returns nothing of this sort",
        ends=cut,
    )
    return with_region(site, dead_regions(graph, {OUTPUT: cut})[OUTPUT])
