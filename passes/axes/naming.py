"""Naming: gives every dimension of the inputs its name, from which all other axes get theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph import ir

from .atoms import leaves, size
from .input_layout import channel_dim, how_to_state, refuse_mixed, usual_names
from .input_roles import axis_name, is_alike
from .names import BATCH, CHANNEL, PACKED, VIDEO, Namer
from .trace import Trace


class InputNaming:
    """Names the dimensions of the inputs of one graph.

    Args:
        inputs: the inputs that are no weights.
        main: numbers of those that have token axes of their own.
        given: axes that the user states, by the input's name.
        latents: number of the latents.
        trace: the axes of every tensor.

    Attributes:
        namer: the names so far.
        notes: what was not certain, in English.
        token_axes: name of the token axis of every other input that has one.
    """

    def __init__(
        self,
        inputs: Sequence[fx.Node],
        main: Sequence[int],
        given: Mapping[str, tuple[str, ...]],
        latents: int,
        trace: Trace,
    ) -> None:
        self.namer = Namer()
        self.notes: list[str] = []
        self.token_axes: dict[str, str] = {}
        self._inputs = inputs
        self._main = main
        self._given = given
        self._latents = latents
        self._trace = trace
        self._channels = {i: channel_dim(i, trace.of(inputs[i]), trace) for i in main}
        flat = [i for i in main if len(trace.of(inputs[i])) == 2 and not ir.is_eager(inputs[i])]
        self._channels |= dict.fromkeys(flat, 1)
        unknown = [i for i in main if self._channels[i] is None]
        self._guessed = {i for i in unknown if ir.source(inputs[i]) not in given}

    def name_all(self) -> None:
        """Name the latents, then the inputs whose layout is known, then the guesses.

        A guess, as for a mask that nothing projects, names no axis that another input knows.
        """
        latents, guessed = self._latents, self._guessed
        for number in sorted(self._main, key=lambda i: (i != latents, i in guessed, i)):
            self._name(number)
        self._name_unbatched()
        self._name_token_ids()
        if latents in guessed:
            refuse_mixed(self._inputs[latents], latents, self._trace, self.namer)

    def _name(self, number: int) -> None:
        """Name the dimensions of an input that has token axes."""
        node, dims = self._inputs[number], self._trace.of(self._inputs[number])
        if ir.is_eager(node):
            self.namer.flat.add(number)
        names = self._given.get(ir.source(node))
        if names is None:
            names = self._likely_names(number)
        for dim, name in enumerate(names):
            self.namer.by_origin[number, dim] = CHANNEL if name == "c" else name
            if name == PACKED and number == self._latents:
                self.notes += self.namer.name_packed(dims[dim], ir.source(node), self._trace.mixed)
        self.namer.order.append(number)
        if number != self._latents:
            found = {name for dim in dims for name in self.namer.roles(dim)}
            fed = found & (set(names) - {"c"})
            own = {ir.source(node): n for n in names if n in fed and _is_source_axis(n)}
            self.token_axes |= own

    def _likely_names(self, number: int) -> tuple[str, ...]:
        """The names that an input of this shape usually has."""
        node, channel = self._inputs[number], self._channels[number]
        if channel is None and number == self._latents:
            self.notes.append(
                f"input '{ir.source(node)}': no projection shows which dimension is the "
                "channel; took the usual place"
            )
        own = None if is_alike(node, self._inputs[self._latents]) else axis_name(node)
        rank = len(self._trace.of(node))
        names = usual_names(rank, channel, own)
        if names is None:
            raise UnsupportedModelError(
                f"the latents '{ir.source(node)}' have {rank} dimensions, for which no names "
                f"are known; state them: {how_to_state(node)}"
            )
        return names

    def _name_unbatched(self) -> None:
        """Name the tokens of inputs ``[tokens, channels]`` that have no batch.

        An input ``[batch, channels]`` looks the same. Its first axis has met the batch of others.
        """
        for number, node in enumerate(self._inputs):
            dims, tensor = self._trace.of(node), ir.tensor(node)
            if number in self._main or tensor is None or tensor.ndim != 2:
                continue
            if not tensor.is_floating_point():
                continue
            projected = all(atom.contracted for atom in leaves(dims[1]))
            if projected and size(dims[0]) > 1 and not self.namer.roles(dims[0]):
                self.namer.by_origin |= {(number, 0): axis_name(node), (number, 1): CHANNEL}
                self.namer.order.append(number)

    def _name_token_ids(self) -> None:
        """Name the tokens of inputs ``[tokens]`` or ``[batch, tokens]`` whose rows are looked up.

        Class labels ``[batch]`` are looked up too. Their axis has met the batch of the others.
        Channels cannot be looked up: an input that names them so (a mask) was a guess.
        """
        for number, node in enumerate(self._inputs):
            dims = self._trace.of(node)
            if len(dims) not in (1, 2) or size(dims[-1]) == 1:
                continue
            is_unnamed = set(self.namer.roles(dims[-1])) <= {CHANNEL}
            if is_unnamed and any(ir.is_call(user, "embedding") for user in node.users):
                names = (BATCH, axis_name(node))[-len(dims) :]
                self.namer.by_origin |= {(number, dim): name for dim, name in enumerate(names)}
                self.namer.order.insert(1, number)


def _is_source_axis(name: str) -> bool:
    return name not in VIDEO and name not in (BATCH, CHANNEL, "c")
