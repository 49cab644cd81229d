"""Classify: finds the token mixers of a graph (``passes.sites.mixer``).

A mixer is one op (scaled dot product attention in any form) or a pair of contractions. A pair is
scores and their product with the values. In linear attention it is the product of keys and values,
and its product with the queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from pab_compile.passes.axes.attention_call import attention_call
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import Contraction, contraction
from pab_compile.passes.graph.trail import contractions_before
from pab_compile.passes.graph.walk import fed_by, picks, positions

from .mixer import Describer, Mixer, Side


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two contractions, of which the second sums over a dimension that the first yields.

    Attributes:
        nodes: the first contraction, the ops between, the second; in graph order.
        first: the first contraction.
        first_dim: the dimension of what the first yields.
        second: the second contraction.
        operand: which operand of the second comes from the first.
        summed: the dimension of that operand.
        normalised: whether a softmax along the dimension lies between.
    """

    nodes: tuple[fx.Node, ...]
    first: Contraction
    first_dim: int
    second: Contraction
    operand: int
    summed: Side
    normalised: bool


def find_mixers(graph_module: fx.GraphModule, axes: AxisTable) -> tuple[Mixer, ...]:
    """Find every attention of a captured graph, in the order of their outputs."""
    graph = graph_module.graph
    latent = _with_fed([axes.latents, *axes.siblings])
    finder = _Finder(Describer(axes, latent), _with_fed(_inputs(graph)))
    for node in ir.calls(graph):
        finder.add(node)
    order = positions(graph)
    return tuple(sorted(finder.mixers(), key=lambda mixer: order[mixer.nodes[-1]]))


def has_mixer_ops(graph: fx.Graph) -> bool:
    """Whether any op can be part of an attention: an attention, an unknown op, or a product."""
    fed = _with_fed(_inputs(graph))
    for node in ir.calls(graph):
        if (
            ir.is_foreign(node)
            or attention_call(node, lambda n: ((),) * len(ir.shape(n) or ())) is not None
        ):
            return True
        spec = contraction(node)
        if spec is not None and len(spec.operands) == 2 and fed.issuperset(spec.operands):
            return True
    return False


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in ir.placeholders(graph) if not ir.is_constant_input(node)]


def _with_fed(inputs: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Some inputs and all nodes that depend on them."""
    return frozenset(inputs) | fed_by(inputs)


def _with_first_pick(node: fx.Node) -> tuple[fx.Node, ...]:
    """An op and, where it yields several tensors, the node that picks the first."""
    return (node, *[pick for pick in picks(node) if pick.args[1] == 0][:1])


def _pairs(node: fx.Node, second: Contraction) -> Iterator[_Pair]:
    """The pairs in which a contraction is the second."""
    for places in second.summed:
        for operand, dim in places:
            source = second.operands[operand]
            for trail in contractions_before(source, dim):
                nodes = (trail.node, *trail.path, node)
                first = contraction(trail.node)
                assert first is not None
                summed = Side(source, [dim])
                yield _Pair(nodes, first, trail.dim, second, operand, summed, trail.normalised)


class _Finder:
    """Collects mixers, one op after another in graph order. Both dicts go by a mixer's output.

    Args:
        describer: makes a ``Mixer`` of nodes that are one.
        fed: the nodes that depend on an input, rather than on weights alone.
    """

    def __init__(self, describer: Describer, fed: frozenset[fx.Node]) -> None:
        self._describer = describer
        self._fed = fed
        self._found: dict[fx.Node, Mixer] = {}
        self._pooled: dict[fx.Node, Mixer] = {}  # whose scores come from weights alone

    def mixers(self) -> list[Mixer]:
        """All mixers. One that pools is left out if it is a part of another."""
        inside = {node for mixer in self._found.values() for node in mixer.nodes}
        pooled = {node: mixer for node, mixer in self._pooled.items() if node not in inside}
        return list((self._found | pooled).values())

    def add(self, node: fx.Node) -> None:
        """Add the mixer that a node completes, if it does."""
        if (call := attention_call(node, self._describer.axes.dims)) is not None:
            query, key = Side(call.query, [call.tokens]), Side(call.key, [call.tokens])
            found = self._describer.mixer(_with_first_pick(node), "sdpa", query, key)
            if call.guessed:
                reason = f"{found.reason}; {node.target} is taken for an attention by its place"
                found = replace(found, reason=reason)
            self._keep(found)
        elif (spec := contraction(node)) is not None and len(spec.operands) == 2:
            for pair in _pairs(node, spec):
                if self._add_pair(pair):
                    break
        elif ir.is_foreign(node):
            self._add_foreign(node)

    def _keep(self, mixer: Mixer) -> None:
        self._found[mixer.nodes[-1]] = mixer

    def _add_foreign(self, node: fx.Node) -> None:
        """An unknown op is a mixer if it joins several tensors of tokens."""
        read = [n for n in node.all_input_nodes if n in self._describer.latent]
        joined = [n for n in read if self._describer.all_tokens(n)]
        if len(joined) > 1:
            self._keep(self._describer.opaque(_with_first_pick(node), *joined[:2]))

    def _add_pair(self, pair: _Pair) -> bool:
        if pair.normalised or self._describer.tokens(pair.summed):
            return self._add_scores(pair)
        return self._add_linear(pair)

    def _add_scores(self, pair: _Pair) -> bool:
        """``softmax(q k^T) v``: the summed dimension is the keys of the first contraction."""
        keys = {operand for operand, _ in pair.first.kept[pair.first_dim]}
        if len(keys) != 1:
            return False
        query = 1 - next(iter(keys))
        where = Side(pair.first.operands[query], _dims_of_one(pair.first, query))
        query_axes, key_axes = map(self._describer.tokens, (where, pair.summed))
        is_pool = pair.normalised and bool(key_axes)
        if not self._fed.issuperset(pair.first.operands):
            if is_pool:
                pooled = self._describer.mixer(pair.nodes, "softmax", where, pair.summed)
                self._pooled[pair.nodes[-1]] = pooled
            return False
        if not query_axes and not is_pool:
            return False
        how = "softmax" if pair.normalised else "linear"
        source = pair.first.operands[1 - query]
        self._keep(self._describer.mixer(pair.nodes, how, where, pair.summed, source))
        return True

    def _add_linear(self, pair: _Pair) -> bool:
        """``q (k^T v)``: the first contraction sums over tokens, the second brings the queries."""
        first, second, query = pair.first, pair.second, 1 - pair.operand
        if pair.nodes[0] in self._found or not self._fed.issuperset(first.operands):
            return False
        summed = [places[0] for places in first.summed if len({o for o, _ in places}) == 2]
        keys = [(o, d) for o, d in summed if self._describer.tokens(Side(first.operands[o], [d]))]
        where = Side(second.operands[query], _dims_of_one(second, query))
        if not keys or not self._describer.tokens(where):
            return False
        key = Side(first.operands[keys[0][0]], [d for _, d in keys])
        self._keep(self._describer.mixer(pair.nodes, "linear", where, key))
        return True


def _dims_of_one(spec: Contraction, operand: int) -> list[int]:
    """The dimensions of an operand that the result has from this operand alone."""
    return [places[0][1] for places in spec.kept if {o for o, _ in places} == {operand}]
