"""Broadcast: every region becomes a step-conditioned branch.

Before::

    %q = linear(%x, ...); ...; %o = linear(%attention, ...); %y = add(%x, %o)

After::

    %o = branch o(%x, ...)      # reuse: load cache | otherwise: linear, ..., linear, and store
    %y = add(%x, %o)

A site may cache the difference between the end and the start of a stretch of the residual stream
(``passes.rewrite.coalesce``). Its branch yields the end, and also gets the start::

    %x2 = branch o(%x, ...)     # reuse: %x + load cache | otherwise: ..., and store %x2 - %x

The branch itself always computes. The rewritten module is a plain ``fx.GraphModule`` with the
original result. At run time the plan decides which branch reuses at which step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.outline import Outlined, outline
from pab_compile.passes.sites.site import Site


@dataclass(frozen=True)
class InputStart:
    """A start of a stretch: its position among the inputs, and the type of what is cached."""

    position: int
    dtype: torch.dtype


class StepBranch(torch.nn.Module):
    """A site in the rewritten graph: ``compute`` yields the tensors that the site caches.

    Attributes:
        site: the site that this branch stands for.
        compute: the region as a graph module; returns a tuple of the cut.
        starts: per value of the tuple, where it is the end of a stretch, its start.
    """

    def __init__(
        self, site: Site, compute: fx.GraphModule, starts: Sequence[InputStart | None] = ()
    ) -> None:
        super().__init__()
        self.site = site
        self.compute = compute
        self.starts = tuple(starts) or (None,) * len(ir.outputs(compute.graph))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the region. Starts that only a reuse reads come last among the inputs."""
        return self.compute(*inputs[: self.num_inputs])

    @property
    def num_inputs(self) -> int:
        """Number of the inputs that ``compute`` reads."""
        return len(ir.placeholders(self.compute.graph))


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

    others = {
        target: list(dict.fromkeys(start.node for start in site.starts.values()))
        for target, site in targets.items()
    }

    def wrap(target: str, outlined: Outlined) -> StepBranch:
        site, inputs = targets[target], (*outlined.inputs, *outlined.others)
        found = [site.starts.get(node) for node in outlined.outputs]
        starts = [s and InputStart(inputs.index(s.node), s.dtype) for s in found]
        return StepBranch(site, outlined.graph_module, starts)

    return outline(graph_module, groups, wrap, others), len(chosen)


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
