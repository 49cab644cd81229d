"""The pass: every rank computes some rows of the batch, and all ranks get the outputs of all rows.

Guidance in one call has two rows, ``[uncond, cond]``, which no op of a model mixes. So each of two
ranks can compute one row, and they exchange nothing before the end::

    %x = conv(%latents, ...)              %mine = slice(%latents, 0, 0, 1)      # rank 0's row
    ...                                   %x = conv(%mine, ...)
    return %out                           ...
                                          return all_gather(%out)

Guidance in two calls has one row in each. Then each of two ranks computes one call, on a graph that
stays as it is.

That rows are kept apart is shown op by op, with the rules of any axis that is sharded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from pab_compile.passes.axes.atoms import Atom, leaves
from pab_compile.passes.axes.names import BATCH
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.program import Program

from .check import check_exchanges, check_sharded
from .layout import Layout, lay_out
from .localise import localise
from .placement import Axis
from .sends import mark_sends
from .shard import Ranks
from .shard_tokens import local_sites
from .traffic import gathered_bytes

_SHARED_CALLS = "batch: each half of the ranks computes one of the two calls of a step"
_ADVICE = "Leave batch_mesh and batch_parallel out, and let the ranks share the tokens."


@dataclass(frozen=True)
class SplitBatch:
    """Shard the rows of the batch. Runs after ``FindSites`` and before ``ShardTokens``.

    Attributes:
        ranks: the ranks, and which of them the graph is for.
    """

    ranks: Ranks
    name: str = "batch"

    def __call__(self, program: Program) -> int:
        """Rewrite the graph for one rank. Returns the number of its collectives."""
        if shares_calls(program, self.ranks.size):
            program.shares_calls = True
            program.sharding = (*program.sharding, _SHARED_CALLS)
            return 0
        layout = lay_out_batch(program, self.ranks.size)
        local = localise(program.graph_module, layout, self.ranks)
        check_exchanges(local.graph_module, local.purposes, self.ranks)
        axes, rows = program.inferred_axes, layout.axis
        count = self.ranks.count(rows.size)

        def new_size(atom: Atom) -> int | None:
            return count if atom.size == rows.size and rows.holds(atom) else None

        program.axes = axes.narrowed({new: old for old, new in local.nodes.items()}, new_size)
        program.mixers = tuple(
            replace(mixer, nodes=tuple(local.nodes[node] for node in mixer.nodes))
            for mixer in program.mixers
        )
        program.sites = local_sites(program.sites, local)
        program.graph_module = local.graph_module
        graph = local.graph_module.graph
        mark_sends(graph, local.purposes, self.ranks, "batch", program.sites)
        program.sharding = (*program.sharding, describe_split(layout, self.ranks))
        return len(local.purposes)

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Check the rewritten graph."""
        check_sharded(after, before, self.ranks)


def first_part(program: Program, num_ranks: int) -> Program:
    """The program of the first of some ranks, which need not exist. The given one does not change.

    Raises:
        ShardingError: the batch cannot be shared.
    """
    found = replace(program)
    SplitBatch(Ranks(num_ranks, group=BATCH))(found)
    return found


def shares_calls(program: Program, num_ranks: int) -> bool:
    """Whether two ranks share the calls of a step, since a call has one row only."""
    return num_ranks == 2 and rows_of(program.inferred_axes).size == 1


def lay_out_batch(program: Program, num_ranks: int) -> Layout:
    """Decide where the rows of the batch are sharded and gathered.

    Args:
        program: a captured graph with its sites.
        num_ranks: number of ranks.

    Raises:
        ShardingError: there are fewer rows than ranks, or an op mixes them. The message says which.
    """
    axes = program.inferred_axes
    rows = rows_of(axes)
    if rows.size < num_ranks:
        fewer = (
            f"Let {rows.size} of them share it."
            if rows.size > 1
            else "If guidance makes two calls per step, two ranks can share them."
        )
        raise ShardingError(
            f"A call has {rows.size} row(s) in its batch, fewer than the {num_ranks} ranks that "
            f"share them. {fewer} Or leave batch_mesh and batch_parallel out, and let the ranks "
            "share the tokens."
        )
    try:
        graph = program.graph_module.graph
        return lay_out(graph, axes, program.mixers, rows, num_ranks, detours=False)
    except ShardingError as error:
        raise ShardingError(f"{error} {_ADVICE}") from None


def describe_split(layout: Layout, ranks: Ranks) -> str:
    """One line that says which rows a rank computes and what it sends."""
    num = sum(gathered_bytes(node, layout.shards[node], ranks) for node in layout.gathers)
    counts = ranks.counts(layout.axis.size)
    return (
        f"batch: {max(counts)} of {layout.axis.size} rows per rank, over {ranks.size} ranks; "
        f"{num / 1e6:.4g} MB per step and rank gathered at the end"
    )


def rows_of(axes: AxisTable) -> Axis:
    """The batch of the latents.

    Raises:
        ShardingError: the model takes it apart.
    """
    found = [
        atom
        for dim in axes.dims(axes.latents)
        for atom in leaves(dim)
        if axes.roles_of(atom) == (BATCH,)
    ]
    large = [atom for atom in found if atom.size > 1]
    if len(large) > 1:
        raise ShardingError(
            f"The model takes the batch of {ir.source(axes.latents)!r} apart, so that its rows "
            f"cannot be sharded over ranks. {_ADVICE}"
        )

    def holds(atom: Atom) -> bool:
        return axes.roles_of(atom) == (BATCH,)

    return Axis(BATCH, large[0].size if large else 1, holds)
