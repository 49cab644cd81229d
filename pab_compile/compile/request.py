"""Requests: a Dynamo graph with all that decides what it is compiled to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph.join import Given, Origin
from pab_compile.passes.parallel.shard import Grid
from pab_compile.plans.form import Form
from pab_compile.ranks.team import Team

from .analysis import Known
from .input_roles import InputRoles


@dataclass(frozen=True, eq=False)
class Request:
    """A Dynamo graph with the inputs of the call that asks for its program.

    Attributes:
        graph: the graph.
        args: Dynamo's inputs.
        tensors: the tensors among them.
        origins: per tensor, where it comes from; None for weights.
        volatile: numbers of the tensors that may change between graphs without notice.
        alone: whether the graph is the whole forward.
        team: the ranks that share the tokens and the batch, or None for one rank.
        stepping: names of inputs that turned out to change at every step, as if the user had stated
            so.
        clock: name of the timestep, if any of them did.
        placed: the roles that an earlier graph of the forward has, or that the call shows by its
            names; None if neither is certain, or if the graphs must show them.
        shown: the roles that an earlier graph of the forward has, or that the call shows by its
            names; None if neither is certain.
        num_samples: None, or how many elements to sample of each output for an observation. Then
            every site computes at every step.
        form: what to compile for, if the plan is live.
        has_open_sizes: whether Dynamo leaves sizes open.
        number: how many graphs of the forward ran before it.
        turn: how often it ran before in the forward with inputs of these origins.
    """

    graph: fx.GraphModule
    args: Sequence[Any]
    tensors: Sequence[torch.Tensor]
    origins: tuple[Origin | None, ...]
    volatile: frozenset[int]
    alone: bool
    team: Team | None = None
    stepping: frozenset[str] = frozenset()
    clock: str = ""
    placed: InputRoles | None = None
    num_samples: int | None = None
    form: Form | None = None
    has_open_sizes: bool = False
    shown: Callable[[], InputRoles | None] = lambda: None
    number: int = 0
    turn: int = 0

    def expected(self) -> Known | None:
        """Latents and clock of an earlier graph of the forward, or those that names show."""
        roles = self.shown()
        return Known(roles.latents, roles.clock, roles.stepping) if roles else None

    def given(self) -> list[tuple[str, torch.Tensor]]:
        """What the caller gives, by name."""
        pairs = zip(self.origins, self.tensors, strict=True)
        return [(origin.name, tensor) for origin, tensor in pairs if isinstance(origin, Given)]

    @property
    def grid(self) -> Grid | None:
        """The place of this rank among those that share the tokens and the batch."""
        return self.team.grid if self.team is not None else None

    @property
    def is_observed(self) -> bool:
        """Whether the program returns samples of its outputs."""
        return self.num_samples is not None
