"""Token mixers: every attention of a graph, and its kind by the axes it mixes.

===========  ==========================================  ==================
kind         queries run along                           keys run along
===========  ==========================================  ==================
``spatial``  ``h`` and/or ``w``, no ``t``                the same
``temporal`` ``t`` only                                  the same
``full``     ``t`` with ``h``/``w``, or packed ``s``     the same
``joint``    video, or video and text                    video and text
``cross``    video (an extra token may lead them)        other sources only, or tokens without a
                                                         name that do not depend on the latents
``text``     text                                        text
``other``    anything else
===========  ==========================================  ==================

A mixer is one op (scaled dot product attention in any form) or two contractions: scores and their
product with the values, or, in linear attention, keys with values and their product with queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import fx

from pab_compile.passes.axes.attention_call import AttentionCall, attention_call
from pab_compile.passes.axes.names import BATCH, CHANNEL, TEXT
from pab_compile.passes.axes.table import VIDEO, AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import Contraction, contraction

_SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
_CASTS = ("_to_copy", "to", "type_as", "clone", "contiguous", "detach", "alias", "lift_fresh_copy")
_SCALES = ("mul", "div", "add", "sub", "rsub", "neg", "masked_fill", "where", "clamp", "nan_to_num")
_ACTIVATIONS = ("exp", "relu", "elu", "sigmoid", "tanh", "silu", "gelu", "softplus", "dropout")
_POINTWISE = (*_SOFTMAX, *_CASTS, *_SCALES, *_ACTIVATIONS, "native_dropout", "clamp_min")
_VIEWS = (
    "view",
    "reshape",
    "_unsafe_view",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "expand",
)
_MAX_STEPS = 24


@dataclass(frozen=True)
class Mixer:
    """An attention: ops that move information between tokens.

    Attributes:
        nodes: The ops that make the mixer, in graph order; the last is its output.
        kind: ``spatial``, ``temporal``, ``full``, ``joint``, ``cross``, ``text`` or ``other``.
        mechanism: ``sdpa``, ``softmax`` (written out by hand), ``linear`` (no softmax) or
            ``opaque`` (an op that is not known).
        query_axes: Axes that the queries run along, batch and channels left out.
        key_axes: Axes that the keys run along.
        reason: The evidence for the kind, in English.
    """

    nodes: tuple[fx.Node, ...]
    kind: str
    mechanism: str
    query_axes: tuple[str, ...]
    key_axes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class _Step:
    """One dimension of one tensor on the way back from a contraction to another."""

    node: fx.Node
    dim: int
    path: tuple[fx.Node, ...] = ()
    normalised: bool = False


def find_mixers(graph_module: fx.GraphModule, axes: AxisTable) -> tuple[Mixer, ...]:
    """Find every attention of a captured graph, in the order of their outputs."""
    graph = graph_module.graph
    inputs = [node for node in ir.placeholders(graph) if not ir.is_constant_input(node)]
    finder = _Finder(
        axes, _fed_nodes(graph, inputs), _fed_nodes(graph, [axes.latents, *axes.siblings])
    )
    for node in ir.calls(graph):
        if (call := attention_call(node, axes.dims)) is not None:
            finder.add_call(node, call)
        elif (spec := contraction(node)) is not None and len(spec.operands) == 2:
            finder.add_contraction(node, spec)
        elif ir.is_foreign(node):
            finder.add_foreign(node)
    return finder.mixers()


def has_mixer_ops(graph: fx.Graph) -> bool:
    """Whether any op can be part of an attention: one, an unknown op, a product of two values."""
    fed = _fed_nodes(graph, [n for n in ir.placeholders(graph) if not ir.is_constant_input(n)])
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


def kind_of(query: Iterable[str], key: Iterable[str]) -> str:
    """Kind of an attention by the axes of its queries and keys (batch and channels left out)."""
    q, k = frozenset(query), frozenset(key)
    q_video, k_video = q & VIDEO, k & VIDEO
    if not q_video:
        return "text" if q == k == {TEXT} else "other"
    if not k_video:
        return "cross" if k and not k & q else "other"
    if k - VIDEO:
        return "joint" if q - VIDEO <= k - VIDEO else "other"
    if q != k:
        return "other"
    if q == {"t"}:
        return "temporal"
    return "spatial" if q <= {"h", "w"} else "full"


def _first_output(node: fx.Node) -> list[fx.Node]:
    """Where an op yields several tensors, the node that picks the first."""
    return [user for user in ir.users(node) if ir.is_getitem(user) and user.args[1] == 0][:1]


def _fed_nodes(graph: fx.Graph, inputs: Sequence[fx.Node]) -> frozenset[fx.Node]:
    """Nodes whose value depends on some inputs."""
    fed = set(inputs)
    for node in graph.nodes:
        if any(arg in fed for arg in node.all_input_nodes):
            fed.add(node)
    return frozenset(fed)


class _Finder:
    """Mixers found so far, by their output."""

    def __init__(
        self, axes: AxisTable, fed: frozenset[fx.Node], latent: frozenset[fx.Node]
    ) -> None:
        self.axes = axes
        self.fed = fed
        self.latent = latent
        self.found: dict[fx.Node, Mixer] = {}
        self.pooled: dict[fx.Node, Mixer] = {}

    def mixers(self) -> tuple[Mixer, ...]:
        inside = {node for mixer in self.found.values() for node in mixer.nodes}
        pooled = {node: mixer for node, mixer in self.pooled.items() if node not in inside}
        every = self.found | pooled
        order = {node: i for i, node in enumerate(self.axes.latents.graph.nodes)}
        return tuple(every[node] for node in sorted(every, key=order.__getitem__))

    def add_call(self, node: fx.Node, call: AttentionCall) -> None:
        nodes = (node, *_first_output(node))
        self.found[nodes[-1]] = self._mixer(
            nodes, "sdpa", (call.query, [call.tokens]), (call.key, [call.tokens])
        )

    def add_foreign(self, node: fx.Node) -> None:
        """Take an op that nobody knows for a mixer if it joins several tensors of tokens."""
        joined = [n for n in node.all_input_nodes if n in self.latent and self._tokens_of(n)]
        if len(joined) > 1:
            query, key = self._tokens_of(joined[0]), self._tokens_of(joined[1])
            where = ir.source_line(node)
            reason = f"unknown op {node.target}: which tokens it mixes cannot be told"
            reason += f" ({where})" if where else ""
            nodes = (node, *_first_output(node))
            self.found[nodes[-1]] = Mixer(nodes, "other", "opaque", query, key, reason)

    def _tokens_of(self, node: fx.Node) -> tuple[str, ...]:
        return self._tokens(node, range(len(self.axes.dims(node))))

    def add_contraction(self, node: fx.Node, spec: Contraction) -> None:
        """Take this contraction as the second of a pair, if it is one."""
        for places in spec.summed:
            for operand, dim in places:
                for step in self._origins(_Step(spec.operands[operand], dim)):
                    first = contraction(step.node)
                    assert first is not None
                    if self._pair(node, spec, operand, dim, step, first):
                        return

    def _pair(
        self,
        node: fx.Node,
        spec: Contraction,
        operand: int,
        dim: int,
        step: _Step,
        first: Contraction,
    ) -> bool:
        nodes = (step.node, *step.path, node)
        summed = (spec.operands[operand], [dim])
        if step.normalised or self._tokens(*summed):
            return self._scores(nodes, summed, step, first)
        return self._linear(nodes, spec, operand, first)

    def _scores(
        self,
        nodes: tuple[fx.Node, ...],
        summed: tuple[fx.Node, list[int]],
        step: _Step,
        first: Contraction,
    ) -> bool:
        """``softmax(q k^T) v``: the summed dimension is the keys of a contraction before."""
        keys = {operand for operand, _ in first.kept[step.dim]}
        if len(keys) != 1:
            return False
        query = 1 - next(iter(keys))
        free = [places[0][1] for places in first.kept if {o for o, _ in places} == {query}]
        where = (first.operands[query], free)
        query_axes, key_axes = self._tokens(*where), self._tokens(*summed)
        if not all(operand in self.fed for operand in first.operands):
            if step.normalised and key_axes:  # scores from weights alone: pooling
                self.pooled[nodes[-1]] = self._mixer(nodes, "softmax", where, summed)
            return False
        if not query_axes and not (step.normalised and key_axes):
            return False
        mechanism = "softmax" if step.normalised else "linear"
        self.found[nodes[-1]] = self._mixer(
            nodes, mechanism, where, summed, first.operands[1 - query]
        )
        return True

    def _linear(
        self, nodes: tuple[fx.Node, ...], spec: Contraction, operand: int, first: Contraction
    ) -> bool:
        """``q (k^T v)``: the contraction before sums over tokens, this one brings the queries."""
        if nodes[0] in self.found or not all(other in self.fed for other in first.operands):
            return False
        keys = [places[0] for places in first.summed if len({o for o, _ in places}) == 2]
        tokens = [(o, d) for o, d in keys if self._tokens(first.operands[o], [d])]
        free = [places[0][1] for places in spec.kept if {o for o, _ in places} == {1 - operand}]
        where = (spec.operands[1 - operand], free)
        if not tokens or not self._tokens(*where):
            return False
        key = (first.operands[tokens[0][0]], [d for _, d in tokens])
        self.found[nodes[-1]] = self._mixer(nodes, "linear", where, key)
        return True

    def _origins(self, start: _Step) -> Iterator[_Step]:
        """Contractions that a dimension of a tensor comes from, through pointwise ops and views."""
        pending, seen = [start], {(start.node, start.dim)}
        while pending:
            step = pending.pop()
            if contraction(step.node) is not None:
                yield step
                continue
            if len(step.path) >= _MAX_STEPS:
                continue
            normalised = step.normalised or _normalises(step)
            for node, dim in _sources(step.node, step.dim):
                if (node, dim) not in seen:
                    seen.add((node, dim))
                    pending.append(_Step(node, dim, (step.node, *step.path), normalised))

    def _tokens(self, node: fx.Node, dims: Iterable[int]) -> tuple[str, ...]:
        """Axes of some dimensions that attention can mix."""
        roles = [role for dim in dims for role in self.axes.roles(node, dim)]
        return tuple(dict.fromkeys(role for role in roles if role not in (BATCH, CHANNEL)))

    def _mixer(
        self,
        nodes: tuple[fx.Node, ...],
        mechanism: str,
        query: tuple[fx.Node, list[int]],
        key: tuple[fx.Node, list[int]],
        keys: fx.Node | None = None,
    ) -> Mixer:
        query_axes, key_axes = self._tokens(*query), self._tokens(*key)
        kind = kind_of(query_axes, key_axes)
        if not key_axes and set(query_axes) & VIDEO and (keys or key[0]) not in self.latent:
            kind = "cross"  # learned queries that looked at a prompt, say
        reason = _reason(kind, mechanism, self._print(*query), self._print(*key))
        if self.axes.frame_major and kind in ("spatial", "temporal"):
            reason += "; the packed tokens are taken as frame-major"
        where = ir.source_line(nodes[-1]) or ir.source_line(nodes[0])
        reason += f" ({where})" if where else ""
        return Mixer(nodes, kind, mechanism, query_axes, key_axes, reason)

    def _print(self, node: fx.Node, dims: list[int]) -> str:
        names = self.axes.names(node)
        named = [names[dim] for dim in dims if names[dim] not in ("1", "c")]
        if not any(self._tokens(node, dims)):
            return f"{'*'.join(named) or 'no'} tokens without a name"
        return "*".join(named)


def _reason(kind: str, mechanism: str, query: str, key: str) -> str:
    how = {"sdpa": "", "softmax": "softmax by hand: ", "linear": "linear attention: "}[mechanism]
    if kind == "cross":
        return f"{how}queries run along {query}, keys along another source, {key}"
    if kind == "joint":
        return f"{how}video and other tokens in one: queries along {query}, keys along {key}"
    if kind == "other":
        return f"{how}queries run along {query}, keys along {key}: no kind fits"
    return f"{how}queries and keys both run along {query}"


def _normalises(step: _Step) -> bool:
    """Whether an op normalises along the dimension: a softmax, or the ``exp`` of one by hand."""
    if ir.is_call(step.node, *_SOFTMAX):
        shape = ir.shape(step.node) or ()
        return int(ir.argument(step.node, 1, "dim")) % len(shape) == step.dim
    return ir.is_call(step.node, "exp")


def _sources(node: fx.Node, dim: int) -> list[tuple[fx.Node, int]]:
    """Where a dimension of an op's output comes from, for ops that only change values or layout."""
    shape = ir.shape(node)
    if ir.is_getitem(node) and node.args[1] == 0:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        return _pointwise(inner, ir.shape(node) or (), dim) if _is_pointwise(inner) else []
    if node.op != "call_function" or shape is None:
        return []
    source = next(iter(node.all_input_nodes), None)
    before = None if source is None else ir.shape(source)
    if source is None or before is None:
        return []
    if ir.is_call(node, "permute"):
        return [(source, int(ir.argument(node, 1, "dims")[dim]) % len(shape))]
    if ir.is_call(node, "transpose", "t", "mT"):
        pair = [int(d) % len(shape) for d in (node.args[1:3] or (-2, -1))]  # type: ignore[arg-type]
        return [(source, pair[1 - pair.index(dim)] if dim in pair else dim)]
    if ir.is_call(node, *_VIEWS):
        return [(source, found)] if (found := _same_place(shape, before, dim)) is not None else []
    return _pointwise(node, shape, dim) if _is_pointwise(node) else []


def _is_pointwise(node: fx.Node) -> bool:
    return ir.is_call(node, *_POINTWISE)


def _pointwise(node: fx.Node, shape: tuple[int, ...], dim: int) -> list[tuple[fx.Node, int]]:
    """Operands that bring the dimension in full, not broadcast."""
    found: list[tuple[fx.Node, int]] = []
    for operand in node.all_input_nodes:
        before = ir.shape(operand)
        at = dim - len(shape) + len(before or ())
        if before is not None and at >= 0 and before[at] == shape[dim]:
            found.append((operand, at))
    return found


def _same_place(shape: tuple[int, ...], before: tuple[int, ...], dim: int) -> int | None:
    """The dimension of the same size and stride in another view of the same elements."""
    inner = _product(shape[dim + 1 :])
    for at, num in enumerate(before):
        if num == shape[dim] and _product(before[at + 1 :]) == inner:
            return at
    return None


def _product(sizes: tuple[int, ...]) -> int:
    out = 1
    for num in sizes:
        out *= num
    return out
