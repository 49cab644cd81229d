"""Broadcast: every region becomes a step-conditioned branch.

Before::

    %q = linear(%x, ...); ...; %o = linear(%attention, ...); %y = add(%x, %o)

After::

    %o = branch o(%x, ...)      # reuse: load cache | otherwise: linear, ..., linear, and store
    %y = add(%x, %o)

The branch itself always computes. The rewritten module is a plain ``fx.GraphModule`` with the
original result. At run time the plan decides which branch reuses at which step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import fx

from pab_compile.passes.graph.outline import Outlined, outline
from pab_compile.passes.sites.site import Site


class StepBranch(torch.nn.Module):
    """A site in the rewritten graph: ``compute`` yields the tensors that the site caches.

    Attributes:
        site: the site that this branch stands for.
        compute: the region as a graph module; returns a tuple of the cut.
    """

    def __init__(self, site: Site, compute: fx.GraphModule) -> None:
        super().__init__()
        self.site = site
        self.compute = compute

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the region."""
        return self.compute(*inputs)


def broadcast(
    graph_module: fx.GraphModule, sites: Sequence[Site], wanted: Callable[[Site], bool]
) -> tuple[fx.GraphModule, int]:
    """Rewrite the region of every wanted site into a ``StepBranch``.

    Args:
        graph_module: a captured graph; not modified. A graph that is already rewritten has no
            regions left, and is returned as it is.
        sites: its sites.
        wanted: which of the sites to rewrite. Sites without a cut are never rewritten.

    Returns:
        The rewritten graph module and the number of branches made.
    """
    present = set(graph_module.graph.nodes)
    chosen = [s for s in sites if s.can_broadcast and wanted(s) and present.issuperset(s.region)]
    if not chosen:
        return graph_module, 0
    targets = {branch_name(index, site): site for index, site in enumerate(chosen)}
    groups = {node: target for target, site in targets.items() for node in site.region}

    def wrap(target: str, outlined: Outlined) -> StepBranch:
        return StepBranch(targets[target], outlined.graph_module)

    return outline(graph_module, groups, wrap), len(chosen)


def branch_name(index: int, site: Site) -> str:
    """Name of a branch's submodule: its kind, its number, its path as an identifier."""
    path = re.sub(r"[^0-9A-Za-z_]", "_", site.module)
    return f"{site.kind}_{index}_{path}" if path else f"{site.kind}_{index}"


def branches(graph_module: fx.GraphModule) -> list[tuple[fx.Node, StepBranch]]:
    """The branches of a rewritten graph in order, each with its call."""
    found = []
    for node in graph_module.graph.find_nodes(op="call_module"):
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, StepBranch):
            found.append((node, module))
    return found
