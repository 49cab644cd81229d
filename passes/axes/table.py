"""Axis inference: what every dimension of every tensor in a graph is.

The graph is walked once. Every dimension becomes an ordered product of atoms (``passes.atoms``),
carried by one rule per op (``passes.axis_rules``); only structure decides, so equal sizes are never
taken for equal axes. At the end the atoms are named after the inputs that they come from: the
latents are the input whose axes the output has, and which of their dimensions is the channel
shows in what the first projection sums over.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from pab_compile.passes.errors import StatedAxesError, UnsupportedModelError
from pab_compile.passes.graph import ir

from .atoms import Atom, Dim, copier, leaves, seed, size, sources
from .input_roles import axis_name, find_siblings, is_alike, is_text
from .names import BATCH, CHANNEL, PACKED, Namer
from .rules import dims_of_call
from .trace import Dims, Outputs, Trace, anew, shape_of

VIDEO = frozenset("thws")
"""Axes of the latents that attention can mix."""

_GRIDS = {1: ("s",), 2: ("h", "w"), 3: ("t", "h", "w")}
_NOT_AXES = ("step", "held")
_LATENT_NAMES = ("latent", "hidden_states", "sample")


@dataclass(frozen=True)
class AxisTable:
    """Axes of every tensor of one graph.

    Attributes:
        latents: Placeholder of the tensor that the model denoises, the first of several.
        siblings: Placeholders of what is denoised with it.
        sources: Name of the token axis of every other input that has one.
        notes: What the inference was not sure of, in English.
    """

    latents: fx.Node
    siblings: tuple[fx.Node, ...]
    sources: Mapping[str, str]
    notes: tuple[str, ...]
    _dims: Mapping[fx.Node, Dims | Outputs | None] = field(repr=False)
    _namer: Namer = field(repr=False)

    def dims(self, node: fx.Node) -> Dims:
        """Dimensions of a node that yields one tensor; empty for any other node."""
        found = self._dims.get(node)
        return found if isinstance(found, tuple) else ()

    @property
    def frame_major(self) -> bool:
        """Whether ``t``, ``h`` and ``w`` are factors of packed tokens, named by their order."""
        return bool(self._namer.packed)

    def roles(self, node: fx.Node, dim: int) -> tuple[str, ...]:
        """Axes that one dimension is made of, outer to inner; unnamed parts are left out.

        Returns:
            Some of ``b``, ``t``, ``h``, ``w``, ``s`` (packed video tokens), ``text`` or another
            input's name, and ``channel``.
        """
        dims = self.dims(node)
        return self._namer.roles(dims[dim]) if dims else ()

    def roles_of(self, atom: Atom) -> tuple[str, ...]:
        """Axes that one atom of a dimension stands for."""
        return self._namer.roles((atom,))

    def seen_from(self, stand_ins: Mapping[fx.Node, fx.Node]) -> AxisTable:
        """The same axes for the nodes of another graph, given what stands for them in this one."""
        dims = {node: self._dims.get(stand_in) for node, stand_in in stand_ins.items()}
        return replace(self, _dims=dims)

    def narrowed(
        self, stand_ins: Mapping[fx.Node, fx.Node], new_size: Callable[[Atom], int | None]
    ) -> AxisTable:
        """The axes of another graph's nodes as well, in which some axes are shorter.

        Args:
            stand_ins: node of the other graph -> the node of this one whose axes it has.
            new_size: the size of an atom there; None where it is the same.
        """
        copies = copier(new_size)
        namer = self._namer
        packed = {copies((atom,))[0]: roles for atom, roles in namer.packed.items()}
        dims = dict(self._dims)
        for node, full in stand_ins.items():
            if (shape := ir.shape(node)) is None:
                continue
            found = tuple(copies(dim) for dim in self.dims(full))
            for known in (found, self.dims(full)):  # what is not dealt out keeps its size
                if tuple(size(leaves(dim)) for dim in known) == shape:
                    dims[node] = known
                    break
        return replace(self, _dims=dims, _namer=replace(namer, packed={**namer.packed, **packed}))

    def names(self, node: fx.Node) -> tuple[str, ...]:
        """One printable name per dimension, such as ``("b*t", "h*w", "c")``."""
        return tuple(self._namer.name(dim) for dim in self.dims(node))


def infer_axes(graph_module: fx.GraphModule, stated: Mapping[str, str] | None = None) -> AxisTable:
    """Find the axes of every tensor in a captured graph.

    Args:
        graph_module: Functional ATen graph whose nodes carry fake tensors.
        stated: Axes of inputs as the user knows them, ``{"hidden_states": "b c t h w"}``. The
            values ``"step"`` and ``"held"`` speak of time, not of axes, and are ignored.

    Raises:
        StatedAxesError: A stated input does not exist or has another rank.
        UnsupportedModelError: No input looks like latents.
    """
    inputs = [n for n in ir.placeholders(graph_module.graph) if not ir.is_constant_input(n)]
    given = _check_stated(inputs, stated or {})
    main = [i for i, node in enumerate(inputs) if _has_tokens(node) or ir.source(node) in given]
    trace = Trace(main=frozenset(main))
    _walk(graph_module.graph, inputs, trace)
    latents = _find_latents(graph_module.graph, inputs, main, given, trace)
    namer = Namer()
    notes: list[str] = []
    axis_names: dict[str, str] = {}
    dims_of = {i: trace.of(inputs[i]) for i in main}
    channels = {i: _channel_dim(i, dims, trace) for i, dims in dims_of.items()}
    guessed = {i for i in main if channels[i] is None and ir.source(inputs[i]) not in given}
    # A guess, as for a mask that nothing projects, names no axis of which another input knows more.
    for number in sorted(main, key=lambda i: (i != latents, i in guessed, i)):
        node, dims = inputs[number], trace.of(inputs[number])
        own = None if is_alike(node, inputs[latents]) else axis_name(node)
        if ir.is_eager(node):
            namer.flat.add(number)
        names = given.get(ir.source(node))
        if names is None:
            channel = channels[number]
            if channel is None and number == latents:
                notes.append(
                    f"input '{ir.source(node)}': no projection shows which dimension is the "
                    "channel; took the usual place"
                )
            names = _usual_names(len(dims), channel, own)
        if names is None:
            raise UnsupportedModelError(
                f"the latents '{ir.source(node)}' have {len(dims)} dimensions, for which no names "
                f"are known; state them: {_how_to_state(node)}"
            )
        for dim, name in enumerate(names):
            namer.by_origin[number, dim] = CHANNEL if name == "c" else name
            if name == PACKED and number == latents:
                notes += namer.name_packed(dims[dim], ir.source(node))
        namer.order.append(number)
        if number != latents:
            fed = {name for dim in dims for name in namer.roles(dim)} & (set(names) - {"c"})
            axis_names |= {ir.source(node): n for n in names if n in fed and _is_source_axis(n)}
    _name_unbatched(inputs, main, trace, namer)
    _name_token_ids(inputs, trace, namer)
    if latents in guessed:
        _refuse_mixed(inputs[latents], latents, trace, namer)
    notes += _describe(trace, namer)
    outputs = [node for node in ir.outputs(graph_module.graph) if trace.of(node)]
    siblings = find_siblings(inputs, main, latents, outputs, trace)
    found = tuple(dict.fromkeys(notes))
    return AxisTable(inputs[latents], siblings, axis_names, found, trace.dims, namer)


def _name_unbatched(
    inputs: Sequence[fx.Node], main: Sequence[int], trace: Trace, namer: Namer
) -> None:
    """Name the tokens of inputs ``[tokens, channels]`` that come without a batch.

    An input ``[batch, channels]`` looks the same; its first axis has met the batch of the others.
    """
    for number, node in enumerate(inputs):
        dims, tensor = trace.of(node), ir.tensor(node)
        if number in main or tensor is None or tensor.ndim != 2 or not tensor.is_floating_point():
            continue
        projected = all(atom.contracted for atom in leaves(dims[1]))
        if projected and size(dims[0]) > 1 and not namer.roles(dims[0]):
            namer.by_origin |= {(number, 0): axis_name(node), (number, 1): CHANNEL}
            namer.order.append(number)


def _name_token_ids(inputs: Sequence[fx.Node], trace: Trace, namer: Namer) -> None:
    """Name the tokens of inputs ``[tokens]`` or ``[batch, tokens]`` whose rows are looked up.

    Class labels ``[batch]`` are looked up too; their axis has met the batch of the others. Channels
    cannot be, so who names them that (a mask) has guessed.
    """
    for number, node in enumerate(inputs):
        dims = trace.of(node)
        if len(dims) not in (1, 2) or size(dims[-1]) == 1:
            continue
        is_unnamed = set(namer.roles(dims[-1])) <= {CHANNEL}
        if is_unnamed and any(ir.is_call(user, "embedding") for user in node.users):
            names = (BATCH, axis_name(node))[-len(dims) :]
            namer.by_origin |= {(number, dim): name for dim, name in enumerate(names)}
            namer.order.insert(1, number)


def _has_tokens(node: fx.Node) -> bool:
    """Whether an input can have token axes: a floating tensor of rank 3 or more.

    What Python code made between two graphs may be flat: packed tokens, even with their channels.
    """
    tensor = ir.tensor(node)
    least = 1 if ir.is_eager(node) else 3
    return tensor is not None and tensor.is_floating_point() and tensor.ndim >= least


def _is_source_axis(name: str) -> bool:
    return name not in VIDEO and name not in (BATCH, CHANNEL, "c")


def _check_stated(inputs: list[fx.Node], stated: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    by_name = {ir.source(node): node for node in inputs}
    given: dict[str, tuple[str, ...]] = {}
    for name, text in stated.items():
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise StatedAxesError(
                f"axes are stated for '{name}', which is no input of this graph{hint} "
                f"(inputs: {', '.join(by_name)})"
            )
        if text in _NOT_AXES:
            continue
        tensor = ir.tensor(by_name[name])
        names = tuple(CHANNEL if axis == "c" else axis for axis in text.split())
        if tensor is None or len(names) != tensor.ndim or len(set(names)) != len(names):
            shape = None if tensor is None else tuple(tensor.shape)
            raise StatedAxesError(
                f"input '{name}' has shape {shape}, which the stated axes '{text}' do not fit: "
                "give one distinct name per dimension, separated by spaces"
            )
        given[name] = names
    return given


def _walk(graph: fx.Graph, inputs: list[fx.Node], trace: Trace) -> None:
    """Fill in the axes of every node, in order."""
    numbers = {node: number for number, node in enumerate(inputs)}
    for node in graph.nodes:
        fed = frozenset[int]().union(*(trace.feeds[arg] for arg in node.all_input_nodes))
        trace.feeds[node] = fed | {numbers[node]} if node in numbers else fed
        val = ir.value(node)
        shape = shape_of(val)
        if node in numbers and shape is not None:
            trace.dims[node] = tuple(seed(n, numbers[node], i) for i, n in enumerate(shape))
        elif node.op != "call_function":
            trace.dims[node] = None if shape is None else anew(shape)
        elif ir.is_getitem(node):
            several = trace.dims.get(node.args[0])
            trace.dims[node] = several[node.args[1]] if isinstance(several, list) else None
        elif shape is not None or isinstance(val, (list, tuple)):
            trace.dims[node] = _checked(node, trace, val)


def _checked(node: fx.Node, trace: Trace, val: object) -> Dims | Outputs | None:
    """Axes of a call; new ones where sizes are known only at run time."""
    vals = list(val) if isinstance(val, (list, tuple)) else [val]
    shapes = [shape_of(v) for v in vals]
    blind = any(
        isinstance(ir.value(arg), torch.Tensor) and trace.dims.get(arg) is None
        for arg in node.all_input_nodes
    )
    if blind or any(
        s is None and isinstance(v, torch.Tensor) for s, v in zip(shapes, vals, strict=True)
    ):
        trace.unknown.append(node)
        found: Outputs = [None if s is None else anew(s) for s in shapes]
    else:
        result = dims_of_call(trace, node)
        found = result if isinstance(result, list) else [result]
    for index, (dims, shape) in enumerate(zip(found, shapes, strict=True)):
        got = None if dims is None else tuple(size(dim) for dim in dims)
        if got != shape:
            trace.unknown.append(node)
            found[index] = None if shape is None else anew(shape)
    return found if isinstance(val, (list, tuple)) else found[0]


def _find_latents(
    graph: fx.Graph,
    inputs: list[fx.Node],
    main: Sequence[int],
    given: Mapping[str, tuple[str, ...]],
    trace: Trace,
) -> int:
    """Number of the input whose axes the output has."""
    outputs = [node for node in ir.outputs(graph) if trace.of(node)]
    reaching = [
        i
        for i in main
        if any(i in trace.feeds[node] for node in outputs)
        and (ir.source(inputs[i]) in given or not is_text(inputs[i]))
        and not ir.is_eager(inputs[i])
    ]
    video = [i for i in reaching if VIDEO & set(given.get(ir.source(inputs[i]), ()))]
    candidates = video or reaching
    if not candidates:
        seen = ", ".join(f"{ir.source(n)} {shape_of(ir.value(n))}" for n in inputs)
        raise UnsupportedModelError(
            "found no latents: no floating input with 3 or more dimensions reaches the output "
            f"(inputs: {seen or 'none'}). Name the axes of the tensor that the model denoises: "
            'options={"axes": {"<input>": "b c t h w"}}'
        )
    projected = {i for _, dims in trace.projected for dim in dims for i in sources(dim)}

    def likeness(number: int) -> tuple[int, bool, int, bool, int]:
        name = ir.source(inputs[number]).lower()
        mine = [size(dim) for dim in trace.of(inputs[number])]
        traced = [sum(number in sources(dim) for dim in trace.of(node)) for node in outputs]
        alike = [
            sum(n == size(dim) for n, dim in zip(mine, trace.of(node), strict=True))
            for node in outputs
            if len(trace.of(node)) == len(mine)
        ]
        named = any(word in name for word in _LATENT_NAMES) and "encoder" not in name
        return max(traced), number in projected, max(alike, default=-1), named, -number

    return max(candidates, key=likeness)


def _channel_dim(number: int, dims: Dims, trace: Trace) -> int | None:
    """Which dimension of an input the first projection sums over; None where it is flat."""
    if len(dims) < 3:
        return None
    order = [1, len(dims) - 1, *range(2, len(dims) - 1), 0]
    for _, summed in trace.projected:
        atoms = {atom for dim in summed for atom in _with_parts(dim)}
        if not any(origin.source == number for atom in atoms for origin in atom.origins):
            continue
        for large in (True, False):
            for dim in order:
                if (size(dims[dim]) > 1) is large and set(leaves(dims[dim])) <= atoms:
                    return dim
    return None


def _with_parts(dim: Dim) -> set[Atom]:
    atoms = set(leaves(dim))
    return atoms.union(*(_with_parts(part) for atom in atoms for part in atom.parts))


def _usual_names(rank: int, channel: int | None, own: str | None) -> tuple[str, ...] | None:
    """Names of an input's dimensions: batch first, then the grid (or its own tokens)."""
    if rank < 3 and own is not None:
        return (own, CHANNEL)[:rank]
    if channel is None:
        channel = 1 if own is None and rank > 3 else rank - 1
    rest = [dim for dim in range(rank) if dim != channel and (dim or not channel)]
    names = [BATCH] * rank
    names[channel] = CHANNEL
    grid = (own,) * len(rest) if own is not None else _GRIDS.get(len(rest))
    if grid is None:
        return None
    for dim, name in zip(rest, grid, strict=True):
        names[dim] = name
    return tuple(names)


def _refuse_mixed(node: fx.Node, latents: int, trace: Trace, namer: Namer) -> None:
    """What a guess takes for the channel must not be mixed with other axes afterwards."""
    for view, mixed, others in trace.clashes:
        roles = namer.roles(mixed)
        if not others and latents in sources(mixed) and CHANNEL in roles and len(roles) > 1:
            names = " ".join("*".join(namer.roles(dim)) or "1" for dim in trace.of(node))
            raise UnsupportedModelError(
                f"the layout of the latents '{ir.source(node)}' {list(ir.shape(node) or ())} "
                f"cannot be told: no projection shows which dimension is the channel, and with the "
                f"usual '{names}' a view cuts across {'*'.join(roles)} "
                f"({ir.source_line(view) or view.name}). State it: {_how_to_state(node)}"
            )


def _how_to_state(node: fx.Node) -> str:
    usual = {3: "b s c", 4: "b c h w"}.get(len(ir.shape(node) or ()), "b c t h w")
    return f'options={{"axes": {{"{ir.source(node)}": "{usual}"}}}}'


def _describe(trace: Trace, namer: Namer) -> list[str]:
    """What rules could not settle, where it concerns axes that have names."""
    notes: list[str] = []
    for node, left, right in trace.clashes:
        where = ir.source_line(node) or node.name
        a, b = namer.roles(left), namer.roles(right)
        if not right and len(set(a) - {CHANNEL}) > 1:
            notes.append(f"a view cuts across {'*'.join(a)}; its axes are mixed ({where})")
        elif a and b and a != b:
            notes.append(f"{'*'.join(a)} meets {'*'.join(b)}; kept apart ({where})")
    for node in trace.unknown:
        if trace.feeds[node]:
            where = ir.source_line(node) or node.name
            notes.append(f"no axis rule for {node.target}: its axes are unnamed ({where})")
    return notes
