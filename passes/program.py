"""The program: a graph with what the passes found in it, and the loop that runs the passes.

A pass is a small frozen dataclass. It has a ``name``, its options as fields, and one call. The call
changes the program and returns the number of changes. The loop does timing, verifying and dumping.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from torch import fx

from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Joined
from pab_compile.passes.graph.printer import format_graph
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.mixer import Mixer
from pab_compile.passes.sites.site import Site


@dataclass
class Program:
    """A graph that passes work on, with what they found in it.

    Attributes:
        graph_module: the graph as it is now.
        axes: named axes of every tensor (after ``InferAxes``).
        latents: the caller's name of the denoised input (after ``BindTimes``).
        clock: the caller's name of the timestep (after ``BindTimes``).
        prompt_inputs: the caller's names of the per-prompt inputs (after ``BindTimes``).
        stepping: the caller's names of the other inputs that change at every step (after
            ``BindTimes``).
        may_step: the caller's names of the per-prompt inputs that may turn out to change at every
            step (after ``Classify``).
        has_eager_inputs: whether Python code made some input between two graphs (after
            ``BindTimes``).
        mixers: token mixers (after ``Classify``).
        sites: sites in model order (after ``FindSites``).
        probed: sites whose samples are among the graph's last outputs (after ``InsertProbes``).
        num_probes: how many of the last outputs are samples (after ``InsertProbes``).
        num_apart: how many ops of the model run as two, which round twice (after
            ``CutIntoPieces``).
        coalesced: which sites cache one sum, and why others do not, one line each (after
            ``Coalesce``).
        sharding: the axis that is sharded over ranks, and why, in lines (after ``ShardTokens``).
        shares_calls: whether each half of the ranks computes one of two calls (after
            ``SplitBatch``).
        seconds: pass name -> seconds it took.
    """

    graph_module: fx.GraphModule
    axes: AxisTable | None = None
    latents: str = ""
    clock: str = ""
    prompt_inputs: tuple[str, ...] = ()
    stepping: tuple[str, ...] = ()
    may_step: tuple[str, ...] = ()
    has_eager_inputs: bool = False
    mixers: tuple[Mixer, ...] = ()
    sites: tuple[Site, ...] = ()
    probed: tuple[Site, ...] = ()
    num_probes: int = 0
    num_apart: int = 0
    coalesced: tuple[str, ...] = ()
    sharding: tuple[str, ...] = ()
    shares_calls: bool = False
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


def narrow(program: Program, joined: Joined, graph_module: fx.GraphModule) -> Program:
    """Transfer what was found in joined graphs to the last of them."""
    if joined.graph_module is graph_module:
        return program
    for node, stand_in in joined.nodes.items():
        ir.set_binding(node, ir.binding(stand_in))
        ir.set_made(node, ir.is_made(stand_in))
        if (names := ir.axis_names(stand_in)) is not None:
            ir.set_axis_names(node, names)
    node_of = {
        stand_in: node for node, stand_in in joined.nodes.items() if node.op != "placeholder"
    }
    mixers = [m for m in program.mixers if all(node in node_of for node in m.nodes)]
    mixers = [replace(m, nodes=tuple(node_of[node] for node in m.nodes)) for m in mixers]
    axes = None if program.axes is None else program.axes.seen_from(joined.nodes)
    return replace(program, graph_module=graph_module, axes=axes, mixers=tuple(mixers))


class Watch(Protocol):
    """Observes every pass. It gets the name and a function that prints the current graph."""

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
