"""Layouts of inputs: which input is the latents, and what its dimensions are.

The latents are the input whose axes the output has. The channel is the dimension that the first
projection sums over. What the user states comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from pab_compile.passes.errors import StatedAxesError, UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.origin import source_line

from .atoms import Atom, Dim, leaves, size, sources
from .input_roles import is_text, sounds_like_latents
from .names import BATCH, CHANNEL, PACKED, VIDEO, Namer
from .stated import by_entry
from .trace import Dims, Trace, shape_of

_GRIDS = {1: ("s",), 2: ("h", "w"), 3: ("t", "h", "w")}
_ROLES = ("clock", "step", "prompt", "held")  # of inputs, see ``passes.sites.binding``


def check_stated(inputs: list[fx.Node], stated: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """The axes that the user states, by the name of the input.

    Raises:
        StatedAxesError: a stated input does not exist or has another rank.
    """
    by_name = {ir.source(node): node for node in inputs}
    given: dict[str, tuple[str, ...]] = {}
    for name, text in by_entry(inputs, stated).items():
        if text in _ROLES:
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


def find_latents(
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node],
    main: Sequence[int],
    given: Mapping[str, tuple[str, ...]],
    trace: Trace,
) -> int:
    """Number of the input whose axes the output has."""
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
        seen = ", ".join(f"{ir.source(n)} {shape_of(n)}" for n in inputs)
        raise UnsupportedModelError(
            "found no latents: no floating input with 3 or more dimensions reaches the output "
            f"(inputs: {seen or 'none'}). Name the axes of the tensor that the model denoises: "
            'options={"axes": {"<input>": "b c t h w"}}'
        )
    projected = {i for _, dims in trace.projected for dim in dims for i in sources(dim)}

    def likeness(number: int) -> tuple[int, bool, int, int, int]:
        mine = [size(dim) for dim in trace.of(inputs[number])]
        traced = [sum(number in sources(dim) for dim in trace.of(node)) for node in outputs]
        alike = [
            sum(n == size(dim) for n, dim in zip(mine, trace.of(node), strict=True))
            for node in outputs
            if len(trace.of(node)) == len(mine)
        ]
        named = sounds_like_latents(ir.source(inputs[number]))
        return max(traced), number in projected, max(alike, default=-1), named, -number

    return max(candidates, key=likeness)


def channel_dim(number: int, dims: Dims, trace: Trace) -> int | None:
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


def usual_names(rank: int, channel: int | None, own: str | None) -> tuple[str, ...] | None:
    """Names of an input's dimensions: batch first, then the grid (or its own tokens).

    Latents of two dimensions are the tokens of all videos in one row.
    """
    if rank == 2 and own is None:
        return PACKED, CHANNEL
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


def refuse_mixed(node: fx.Node, latents: int, trace: Trace, namer: Namer) -> None:
    """What a guess takes for the channel must not be mixed with other axes afterwards."""
    for view, mixed, others in trace.clashes:
        roles = namer.roles(mixed)
        if not others and latents in sources(mixed) and CHANNEL in roles and len(roles) > 1:
            names = " ".join("*".join(namer.roles(dim)) or "1" for dim in trace.of(node))
            raise UnsupportedModelError(
                f"the layout of the latents '{ir.source(node)}' {list(ir.shape(node) or ())} "
                f"is not known: no projection shows which dimension is the channel, and with the "
                f"usual '{names}' a view cuts across {'*'.join(roles)} "
                f"({source_line(view) or view.name}). State it: {how_to_state(node)}"
            )


def how_to_state(node: fx.Node) -> str:
    """The option that states the axes of an input, as an example."""
    usual = {3: "b s c", 4: "b c h w"}.get(len(ir.shape(node) or ()), "b c t h w")
    return f'options={{"axes": {{"{ir.source(node)}": "{usual}"}}}}'
