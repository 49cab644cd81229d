"""Inner sums: sums inside of a residual branch, which are no residual additions.

A branch may add its own stream, and put a norm after the sum::

    y = x + gate * attention(norm(x))     # inner: only the branch reads y
    x = x + mlp(norm(y))                  # the stream x goes on

It may also add up attentions that read one another::

    a = attention(norm(x))
    x = x + proj(a + cross_attention(a, text))

A sum is inner if no sum reads it, scaled or not, and all that is computed from it is added to the
stream of the branch within a few nodes. The stream of a usual block is read by the next sum.
So is that of a block that norms its sums: what is computed from the normed sum is added to it.
Where no product lies between, the stream is only normed: ``norm(x + f(x)) + x`` has a skip ``x``.
"""

from __future__ import annotations

from collections.abc import Container

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction

from .adds import origin, parts, same, scaled
from .beside import Streams
from .growth import latent_inputs

_MAX_NODES = 200


def is_inner(total: fx.Node, streams: Streams, inside: Container[fx.Node]) -> bool:
    """Whether a sum that a region's value goes into lies inside of the residual branch.

    Args:
        total: the sum.
        streams: where the streams of the region may come from.
        inside: the nodes of all regions.
    """
    added_again = {origin(n) for n in latent_inputs(total) if n not in inside}
    reached = {total: None}
    pending = [total]
    for node in pending:  # grows while it is read
        if len(pending) > _MAX_NODES:
            return False
        for user in node.users:
            if user in reached:
                continue
            if user.op == "output" or ir.has_effect(user):
                return False
            others = [origin(n) for n in parts(user) if n not in reached]
            if _is_copy(node, total) and parts(user):
                return False
            if any(
                n in added_again if added_again else _is_stream(n, streams, inside) for n in others
            ):
                continue
            reached[user] = None
            pending.append(user)
    return not _goes_on(total, reached)


def _goes_on(total: fx.Node, reached: Container[fx.Node]) -> bool:
    """Whether the sum, normed or not, is a stream: nothing is computed from it, or added to it."""
    alike, has_product = {total: None}, False
    pending = [total]
    for node in pending:  # grows while it is read
        for user in node.users:
            if user not in reached or user in alike:
                continue
            if contraction(user) is not None:
                has_product = True
            elif any(n not in alike and n in reached for n in parts(user)):
                return True
            else:
                alike[user] = None
                pending.append(user)
    return not has_product


def _is_copy(node: fx.Node, total: fx.Node) -> bool:
    """Whether a node casts, views, copies or scales the sum as a stream, or is the sum."""
    while node is not total:
        source = same(node) or scaled(node)
        if source is None:
            return False
        node = source
    return True


def _is_stream(node: fx.Node, streams: Streams, inside: Container[fx.Node]) -> bool:
    return streams.is_read(node) and node not in inside
