"""The pipeline: the passes in order, and the loop that runs them.

A pass is a small frozen dataclass with a ``name``, its options as fields, and one call that changes
the program and returns how much it changed. Timing, verifying and dumping belong to the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from torch import fx

from . import ir
from .axes import AxisTable, infer_axes
from .binding import STATED_HELD, STATED_STEP, Binding, bind, find_clock, step_inputs
from .broadcast import branches, broadcast
from .classify import Mixer, find_mixers
from .coalesce import Pattern, coalesce, verify_coalesced
from .errors import UnsupportedModelError
from .find_sites import find_sites
from .join import Joined
from .pieces import cut_into_pieces
from .printer import format_graph
from .probes import insert_probes, verify_probes
from .sites import Site
from .verify import verify


@dataclass
class Program:
    """A graph on its way through the passes, with what they found.

    Attributes:
        graph_module: the graph as it is now.
        axes: named axes of every tensor (after ``InferAxes``).
        clock: the caller's name of the timestep (after ``BindTimes``).
        held: the caller's names of the per-prompt inputs (after ``BindTimes``).
        stepping: the caller's names of the other inputs that change at every step, likewise.
        has_eager_inputs: whether Python code made some input between two graphs, likewise.
        mixers: token mixers (after ``Classify``).
        sites: sites in model order (after ``FindSites``).
        probed: sites whose samples are among the graph's last outputs (after ``InsertProbes``).
        num_probes: how many of the last outputs are samples, likewise.
        coalesced: which sites cache one sum, and why others do not, in lines (after ``Coalesce``).
        sharding: the axis that is sharded over ranks, and why, in lines (after ``ShardTokens``).
        seconds: pass name -> seconds it took.
    """

    graph_module: fx.GraphModule
    axes: AxisTable | None = None
    clock: str = ""
    held: tuple[str, ...] = ()
    stepping: tuple[str, ...] = ()
    has_eager_inputs: bool = False
    mixers: tuple[Mixer, ...] = ()
    sites: tuple[Site, ...] = ()
    probed: tuple[Site, ...] = ()
    num_probes: int = 0
    coalesced: tuple[str, ...] = ()
    sharding: tuple[str, ...] = ()
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


@runtime_checkable
class Verified(Protocol):
    """A pass whose result has invariants of its own."""

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Check the rewritten graph against the one it came from."""
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
        steps = step_inputs(graph, clock, self.stated)
        denoised = frozenset([latents, *program.inferred_axes.siblings])
        changed = bind(graph, denoised, steps)
        program.clock = ir.source(clock)
        inputs = [n for n in ir.placeholders(graph) if not ir.is_constant_input(n)]
        given = [n for n in inputs if not ir.is_eager(n) and n is not latents and n is not clock]
        program.held = tuple(ir.source(n) for n in given if ir.binding(n) == Binding.PROMPT)
        program.stepping = tuple(ir.source(n) for n in given if ir.binding(n) != Binding.PROMPT)
        program.has_eager_inputs = any(ir.is_eager(n) for n in inputs)
        return changed


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
class Coalesce:
    """Let sites that are always reused together cache one sum."""

    pattern: Pattern
    name: str = "coalesce"

    def __call__(self, program: Program) -> int:
        """Merge sites and add the sums to the graph."""
        done = coalesce(program.graph_module, program.sites, self.pattern)
        verify_coalesced(done.graph_module, program.graph_module, done.sites)
        program.coalesced = done.lines
        if done.count:
            program.graph_module, program.sites = done.graph_module, done.sites
        return done.count

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Verified with the sites, which the graph alone does not show."""


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
class InsertProbes:
    """Return samples of what every branch would cache, and of the outputs."""

    num_samples: int
    name: str = "probes"

    def __call__(self, program: Program) -> int:
        """Append one output per branch and one for the outputs."""
        program.probed = tuple(branch.site for _, branch in branches(program.graph_module))
        program.graph_module, count = insert_probes(program.graph_module, self.num_samples)
        program.num_probes = count
        return count

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Only outputs were added."""
        verify_probes(after, before)


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
    return (*recognition(axes), FindSites(cut))


def recognition(axes: Mapping[str, str]) -> tuple[Pass, ...]:
    """The passes that find out what is what, on a graph behind those that feed it."""
    return (InferAxes(axes), BindTimes(axes), Classify())


def narrow(program: Program, joined: Joined, graph_module: fx.GraphModule) -> Program:
    """Take what was found in joined graphs back to the last of them."""
    if joined.graph_module is graph_module:
        return program
    for node, stand_in in joined.nodes.items():
        ir.set_binding(node, ir.binding(stand_in))
        if (names := ir.axis_names(stand_in)) is not None:
            ir.set_axis_names(node, names)
    node_of = {
        stand_in: node for node, stand_in in joined.nodes.items() if node.op != "placeholder"
    }
    mixers = [m for m in program.mixers if all(node in node_of for node in m.nodes)]
    mixers = [replace(m, nodes=tuple(node_of[node] for node in m.nodes)) for m in mixers]
    axes = program.inferred_axes.seen_from(joined.nodes)
    return replace(program, graph_module=graph_module, axes=axes, mixers=tuple(mixers))


def rewriting(wanted: Callable[[Site], bool], num_samples: int | None = None) -> tuple[Pass, ...]:
    """The passes that rewrite: branches, probes of so many samples where asked for, pieces."""
    probes = () if num_samples is None else (InsertProbes(num_samples),)
    return (Broadcast(wanted), *probes, CutIntoPieces())


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
            check = step.verify if isinstance(step, Verified) else verify
            check(program.graph_module, before)
        program.seconds[step.name] = time.perf_counter() - start
    return program
