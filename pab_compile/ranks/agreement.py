"""Agreement: the ranks that share a model compile the same programs, and fail together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import fx

from pab_compile.errors import RanksError
from pab_compile.options import GivenOptions

from .mesh import named_peers, own_peers
from .team import Team, team_of
from .watch import Doing
from .words import CALL, COMPILES, PROGRAM, SIZES, sizes_of, some_compile

P = TypeVar("P")


class Agreement:
    """The agreement of all ranks about one Dynamo graph. On one rank it does nothing.

    Args:
        graph_module: Dynamo's graph. Its collectives name the ranks of a model that is parallel by
            itself.
        options: options as the user gave them, before they are validated.
    """

    def __init__(self, graph_module: fx.GraphModule, options: GivenOptions) -> None:
        self._graph_module = graph_module
        self._options = options
        self._team: Team | None = None

    @property
    def is_alone(self) -> bool:
        """Whether no other rank compiles the same programs."""
        return self._team is None

    def begin(self) -> None:
        """Begin a call of the graph.

        Raises:
            RanksError: a rank failed in an earlier call, and the ranks cannot begin anew.
        """
        if self._team is not None:
            self._team.begin()

    def end(self) -> None:
        """Note that a call of the graph is over."""
        if self._team is not None:
            self._team.leave()

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks that a call failed on this one.

        Raises:
            RanksError: another rank failed, and this one failed only because it waited for it.
        """
        if self._team is not None:
            self._team.fail(error)

    def compiled(
        self,
        compile_here: Callable[[Team | None], P],
        fingerprint_of: Callable[[P, bool], str],
        inputs: Sequence[tuple[str, torch.Tensor]],
        keep: Callable[[P, str], None],
    ) -> P:
        """Compile a program on this rank, and compare it with those of the other ranks.

        Args:
            compile_here: compiles the program. It gets the ranks that share tokens and batch.
            fingerprint_of: what must be the same on all ranks, of a program. It also gets whether
                this compiler makes the ranks exchange.
            inputs: what the caller gives, by name.
            keep: keeps what is the same with the program.

        Raises:
            RanksError: the programs differ, or another rank failed.
        """
        if self._team is None:
            self._team = team_of(named_peers(self._options)) or team_of(
                own_peers(self._graph_module), exchanges=False
            )
            if self._team is not None:
                self._team.begin()
        team = self._team
        if team is None:
            return compile_here(None)
        if not team.exchanges and not team.is_first(self._options):
            return compile_here(None)
        if team.exchanges:  # a rank that computes another step should not wait until it is compiled
            sizes = sizes_of(inputs)
            words = {CALL: f"{COMPILES} for {sizes}", SIZES: sizes}
            said = team.compare(words, may_begin=True)
            if not some_compile(said):
                raise RanksError(team.difference(said))
        team.here.now(Doing.COMPILING)
        try:
            program = compile_here(team if team.exchanges else None)
        except Exception as error:
            team.agree({}, error)
            raise
        finally:
            team.leave()
        found = fingerprint_of(program, team.exchanges)
        team.agree({PROGRAM: found})
        keep(program, found)
        return program
