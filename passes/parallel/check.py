"""Check: the invariants of a sharded graph, on the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import fx

from pab_compile.passes.errors import InvariantError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.ops import is_collective, is_wait
from pab_compile.passes.sites.site import Site

from .emit import Exchange
from .layout import Layout
from .ring import PassedOn
from .shard import Ranks


def collectives(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The collectives among some nodes, waits left out."""
    return [node for node in nodes if is_collective(node)]


def check_sharded(after: fx.GraphModule, before: fx.GraphModule, ranks: Ranks) -> None:
    """Check the graph of one rank against the graph of one device.

    - It is well formed. Its inputs and outputs are those of the graph of one device.
    - Every collective has one wait. It belongs to the ranks' group, or was in the graph before.
    - An all-to-all has one size per rank to send and to receive. It sends all of its operand.

    Args:
        after: the graph of one rank.
        before: the graph of one device.
        ranks: the ranks.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    after.graph.lint()
    for what, find in (("inputs", ir.placeholders), ("outputs", ir.outputs)):
        old = [ir.shape(node) for node in find(before.graph)]
        new = [ir.shape(node) for node in find(after.graph)]
        if old != new:
            raise InvariantError(f"sharding changed the {what} from {old} to {new}")
    _check_kept(after, before, ranks)
    for node in collectives(list(after.graph.nodes)):
        waits = [user for user in node.users if is_wait(user)]
        if len(waits) != 1 or len(node.users) != 1:
            raise InvariantError(f"{node.name} is waited for {len(waits)} times, not once")
        if ir.is_call(node, "all_to_all_single") and node.args[-1] == ranks.group:
            _check_sizes(node, ranks)


def _check_kept(after: fx.GraphModule, before: fx.GraphModule, ranks: Ranks) -> None:
    """Check that the collectives of other ranks, which share the batch, did not change."""
    kept = [_in_words(node) for node in collectives(list(before.graph.nodes))]
    for node in collectives(list(after.graph.nodes)):
        if node.args[-1] == ranks.group:
            continue
        if not kept or _in_words(node) != kept.pop(0):
            raise InvariantError(f"{node.name} is for the group {node.args[-1]!r}")
    if kept:
        raise InvariantError(f"sharding lost a collective of other ranks: {kept[0]}")


def _in_words(node: fx.Node) -> str:
    return f"{node.target} {ir.shape(node)} {node.args[1:]}"


def _check_sizes(node: fx.Node, ranks: Ranks) -> None:
    operand, received, sent = node.args[:3]
    assert isinstance(operand, fx.Node)
    for sizes, value in ((sent, operand), (received, node)):
        assert isinstance(sizes, (list, tuple))
        num = (ir.shape(value) or (0,))[0]
        if len(sizes) != ranks.size or sum(map(int, sizes)) != num:  # type: ignore[arg-type]
            raise InvariantError(
                f"{node.name} exchanges {list(sizes)} over {ranks.size} ranks, for {num} elements"
            )


def check_exchanges(
    graph_module: fx.GraphModule, purposes: Mapping[fx.Node, Exchange | PassedOn], ranks: Ranks
) -> None:
    """Check that every collective fits those of the other ranks.

    The purpose of a collective gives one table of the sizes that each rank sends to each other. All
    ranks compare their own sizes with this table. So one rank sends what the other expects, for
    parts of any length.

    Args:
        graph_module: the graph of one rank.
        purposes: collective -> its purpose, which is the same on all ranks.
        ranks: the ranks.

    Raises:
        InvariantError: another rank expects other sizes, or a collective has no purpose.
    """
    everyone = range(ranks.size)
    for node in collectives(list(graph_module.graph.nodes)):
        if node.args[-1] != ranks.group:
            continue
        if (purpose := purposes.get(node)) is None:
            raise InvariantError(f"{node.name} is a collective that no change of layout calls for")
        sent = [purpose.elements(ranks.rank, other, ranks) for other in everyone]
        expected = [purpose.elements(other, ranks.rank, ranks) for other in everyone]
        if ir.is_call(node, "all_to_all_single"):
            found = [list(sizes) for sizes in (node.args[2], node.args[1])]  # type: ignore[arg-type]
        elif ir.is_call(node, "all_reduce"):
            found = [[math.prod(ir.shape(node) or ())] * ranks.size] * 2
        else:
            num = [(ir.shape(n) or (0,))[0] for n in (*node.all_input_nodes, node)]
            found = [[num[0]] * ranks.size, [num[1] // ranks.size] * ranks.size]
        for what, mine, theirs in (
            ("sends", found[0], sent),
            ("expects", found[1], expected),
        ):
            if mine != theirs:
                raise InvariantError(
                    f"{node.name}: rank {ranks.rank} {what} {mine} elements, "
                    f"and the other ranks expect {theirs}"
                )


def check_layout(layout: Layout) -> None:
    """Check that a collective is planned wherever the layout of a tensor changes.

    Raises:
        InvariantError: an op of a detour reads a tensor that is sharded along the main axis, or an
            op outside reads one that is sharded along the other axis.
    """
    for detour in layout.detours:
        entering = {crossing.node for crossing in detour.entering}
        leaving = {crossing.node for crossing in detour.leaving}
        for node, verdict in detour.verdicts.items():
            for source in node.all_input_nodes:
                inside = source in detour.verdicts
                stays = inside or source in entering or (detour.kept and source in layout.shards)
                if source in layout.shards and not stays:
                    raise InvariantError(
                        f"{node.name} runs along {detour.axis.name} and reads {source.name}, which "
                        f"is sharded along {layout.axis.name} and is not re-sharded"
                    )
            outside = [user for user in node.users if user not in detour.verdicts]
            back = node in leaving or node in detour.kept
            if outside and not back and any(verdict.outputs):
                raise InvariantError(
                    f"{outside[0].name} runs along {layout.axis.name} and reads {node.name}, which "
                    f"is sharded along {detour.axis.name} and is not re-sharded"
                )


def check_regions(sites: Sequence[Site], inside: dict[str, Sequence[fx.Node]]) -> None:
    """Check that the collectives of a site lie in its region, so that a reuse exchanges nothing.

    Args:
        sites: the sites of the sharded graph.
        inside: site name -> the collectives of its detours.

    Raises:
        InvariantError: a collective of a site would run although the site is reused.
    """
    for site in sites:
        region = set(site.region)
        strays = [node for node in inside.get(site.name, ()) if node not in region]
        if site.can_broadcast and strays:
            raise InvariantError(
                f"{site.name}: {strays[0].name} re-shards for it but would run on reuse as well"
            )
