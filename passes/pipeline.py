"""The pipeline: the passes in order, and the loop that runs them.

A pass is a small frozen dataclass with a ``name``, its options as fields, and one call that changes
the program and returns how much it changed. Timing, verifying and dumping belong to the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from torch import fx

from . import ir
from .axes import AxisTable, infer_axes
from .binding import STATED_HELD, STATED_STEP, bind, find_clock, step_inputs
from .broadcast import broadcast
from .classify import Mixer, find_mixers
from .errors import UnsupportedModelError
from .find_sites import find_sites
from .pieces import cut_into_pieces
from .printer import format_graph
from .sites import Site
from .verify import verify


@dataclass
class Program:
    """A graph on its way through the passes, with what they found.

    Attributes:
        graph_module: the graph as it is now.
        axes: named axes of every tensor (after ``InferAxes``).
        clock: the timestep placeholder's name (after ``BindTimes``).
        mixers: token mixers (after ``Classify``).
        sites: sites in model order (after ``FindSites``).
        seconds: pass name -> seconds it took.
    """

    graph_module: fx.GraphModule
    axes: AxisTable | None = None
    clock: str = ""
    mixers: tuple[Mixer, ...] = ()
    sites: tuple[Site, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def inferred_axes(self) -> AxisTable:
        """The axes; an internal error before they are inferred."""
        assert self.axes is not None, "InferAxes has not run"
        return self.axes


class Pass(Protocol):
    """One step of the pipeline."""

    @property
    def name(self) -> str:
        """Name in dumps and messages."""
        ...

    def __call__(self, program: Program) -> int:
        """Change the program; return the number of changes."""
        ...


@dataclass(frozen=True)
class InferAxes:
    """Name every dimension of every tensor."""

    stated: Mapping[str, str]
    name: str = "axes"

    def __call__(self, program: Program) -> int:
        """Infer the axes of a captured graph."""
        roles = (STATED_STEP, STATED_HELD)
        stated = {k: v for k, v in self.stated.items() if v not in roles}
        program.axes = infer_axes(program.graph_module, stated)
        single = [node for node in program.graph_module.graph.nodes if ir.tensor(node) is not None]
        for node in single:
            ir.set_axis_names(node, program.axes.names(node))
        return len(single)


@dataclass(frozen=True)
class BindTimes:
    """Find the clock and record when every value is known."""

    stated: Mapping[str, str]
    name: str = "binding"

    def __call__(self, program: Program) -> int:
        """Bind every node of a captured graph."""
        graph = program.graph_module.graph
        latents = program.inferred_axes.latents
        clock = find_clock(graph, latents, self.stated)
        program.clock = clock.name
        denoised = frozenset([latents, *program.inferred_axes.siblings])
        return bind(graph, denoised, step_inputs(graph, clock, self.stated))


@dataclass(frozen=True)
class Classify:
    """Find token mixers and their kinds."""

    name: str = "classify"

    def __call__(self, program: Program) -> int:
        """Find the mixers; a graph without any is an error."""
        program.mixers = find_mixers(program.graph_module, program.inferred_axes)
        if not program.mixers:
            raise UnsupportedModelError(
                "No attention was found in this graph: no op mixes tokens along a named axis "
                f"({len(program.graph_module.graph.nodes)} nodes, latents "
                f"{ir.source(program.inferred_axes.latents)!r}). Is this the denoising model? If "
                'its latents were mistaken, state them: options={"axes": {"<input>": "b c t h w"}}.'
            )
        return 0


@dataclass(frozen=True)
class FindSites:
    """Find the region of every site and what to cache of it."""

    cut: str
    name: str = "sites"

    def __call__(self, program: Program) -> int:
        """Find the sites; a graph where none can be broadcast is an error."""
        graph = program.graph_module.graph
        program.sites = find_sites(graph, program.mixers, program.inferred_axes, self.cut)
        if not any(site.can_broadcast for site in program.sites):
            reasons = "; ".join(f"{site.name}: {site.reason}" for site in program.sites[:3])
            raise UnsupportedModelError(f"No site of this graph can be broadcast: {reasons}.")
        return 0


@dataclass(frozen=True)
class Broadcast:
    """Rewrite wanted regions into step-conditioned branches."""

    wanted: Callable[[Site], bool]
    name: str = "broadcast"

    def __call__(self, program: Program) -> int:
        """Rewrite the graph."""
        program.graph_module, count = broadcast(program.graph_module, program.sites, self.wanted)
        return count


@dataclass(frozen=True)
class CutIntoPieces:
    """Cut the rewritten graph for the inner compiler."""

    name: str = "pieces"

    def __call__(self, program: Program) -> int:
        """Group everything outside the branches."""
        program.graph_module = cut_into_pieces(program.graph_module)
        return len(list(program.graph_module.graph.find_nodes(op="call_module")))


def analysis(axes: Mapping[str, str], cut: str) -> tuple[Pass, ...]:
    """The passes that only look: axes, binding times, mixers, sites."""
    return (InferAxes(axes), BindTimes(axes), Classify(), FindSites(cut))


def rewriting(wanted: Callable[[Site], bool]) -> tuple[Pass, ...]:
    """The passes that rewrite: branches, then pieces."""
    return (Broadcast(wanted), CutIntoPieces())


class Watch(Protocol):
    """Told about every pass: its name, and how to print the graph as it is at that moment."""

    def __call__(self, pass_name: str, text: Callable[[], str]) -> AbstractContextManager[None]:
        """A context that the pass runs in."""
        ...


def _unwatched(pass_name: str, text: Callable[[], str]) -> AbstractContextManager[None]:
    return nullcontext()


def run_passes(program: Program, passes: Sequence[Pass], watch: Watch = _unwatched) -> Program:
    """Run passes in order and verify the graph after each rewrite.

    Args:
        program: changed in place and returned.
        passes: what to run.
        watch: wraps each pass, for dumps.
    """

    def text() -> str:
        return format_graph(program.graph_module, ir.axis_names)

    for step in passes:
        before = program.graph_module
        start = time.perf_counter()
        with watch(step.name, text):
            step(program)
        if program.graph_module is not before:
            verify(program.graph_module, before)
        program.seconds[step.name] = time.perf_counter() - start
    return program
