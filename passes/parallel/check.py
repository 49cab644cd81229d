"""Check: the invariants of a sharded graph, on the graph itself."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from pab_compile.passes import ir
from pab_compile.passes.errors import InvariantError
from pab_compile.passes.sites import Site

from .shard import Ranks


def collectives(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The collectives among some nodes, waits left out."""
    return [
        node
        for node in nodes
        if ir.op_namespace(node) == "_c10d_functional" and not ir.is_call(node, "wait_tensor")
    ]


def check_sharded(
    after: fx.GraphModule,
    before: fx.GraphModule,
    ranks: Ranks,
    own: frozenset[fx.Node] = frozenset(),
) -> None:
    """Check the graph of one rank against the graph of one device.

    - it is well formed; its inputs and outputs are those of the graph of one device;
    - every collective that the pass made is for the ranks' group and is waited for once;
    - the sizes that an all-to-all sends and receives are one per rank, and those that it sends are
      all of its operand.

    Args:
        after: the graph of one rank.
        before: the graph of one device.
        ranks: the ranks.
        own: collectives that the model itself holds.

    Raises:
        InvariantError: the first invariant that does not hold.
    """
    after.graph.lint()
    for what, find in (("inputs", ir.placeholders), ("outputs", ir.outputs)):
        old = [ir.shape(node) for node in find(before.graph)]
        new = [ir.shape(node) for node in find(after.graph)]
        if old != new:
            raise InvariantError(f"sharding changed the {what} from {old} to {new}")
    for node in collectives(list(after.graph.nodes)):
        if node in own:
            continue
        waits = [user for user in node.users if ir.is_call(user, "wait_tensor")]
        if len(waits) != 1 or len(node.users) != 1:
            raise InvariantError(f"{node.name} is waited for {len(waits)} times, not once")
        if node.args[-1] != ranks.group:
            raise InvariantError(f"{node.name} is for the group {node.args[-1]!r}")
        if ir.is_call(node, "all_to_all_single"):
            _check_sizes(node, ranks)


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


def check_regions(sites: Sequence[Site], inside: dict[str, Sequence[fx.Node]]) -> None:
    """Check that what re-shards for a site lies in its region, so that a reuse exchanges nothing.

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
