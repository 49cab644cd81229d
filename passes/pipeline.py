"""The pipeline: the passes and their order (``passes.program`` runs them)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx

from pab_compile.passes.axes.infer import infer_axes
from pab_compile.passes.errors import UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.program import Pass, Program
from pab_compile.passes.rewrite.broadcast import branches, broadcast
from pab_compile.passes.rewrite.coalesce import Pattern, coalesce, verify_coalesced
from pab_compile.passes.rewrite.fusing import fuse_sums, num_apart, verify_fused
from pab_compile.passes.rewrite.pieces import cut_into_pieces
from pab_compile.passes.rewrite.probes import insert_probes, verify_probes
from pab_compile.passes.rewrite.verify import verify
from pab_compile.passes.sites.binding import (
    Binding,
    bind,
    find_clock,
    step_inputs,
)
from pab_compile.passes.sites.classify import find_mixers
from pab_compile.passes.sites.find_sites import find_sites
from pab_compile.passes.sites.may_step import may_step
from pab_compile.passes.sites.site import OUTPUT, Site
from pab_compile.passes.sites.whole import whole_site


@dataclass(frozen=True)
class InferAxes:
    """Name every dimension of every tensor.

    Attributes:
        stated: the user's ``axes`` option.
        is_printed: whether the graph may be printed with the names.
    """

    stated: Mapping[str, str]
    is_printed: bool = True
    name: str = "axes"

    def __call__(self, program: Program) -> int:
        """Infer the axes of a captured graph."""
        program.axes = infer_axes(program.graph_module, self.stated)
        single = [node for node in program.graph_module.graph.nodes if ir.tensor(node) is not None]
        for node in single if self.is_printed else ():
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
        program.latents, program.clock = ir.source(latents), ir.source(clock)
        inputs = [n for n in ir.placeholders(graph) if not ir.is_constant_input(n)]
        given = [n for n in inputs if not ir.is_eager(n) and n is not latents and n is not clock]
        program.prompt_inputs = tuple(
            ir.source(n) for n in given if ir.binding(n) == Binding.PROMPT
        )
        program.stepping = tuple(ir.source(n) for n in given if ir.binding(n) != Binding.PROMPT)
        program.has_eager_inputs = any(ir.is_eager(n) for n in inputs)
        return changed


@dataclass(frozen=True)
class Classify:
    """Find token mixers and their kinds, and the inputs that they show to be no prompts.

    Attributes:
        stated: the user's ``axes`` option.
        needs_mixers: whether a graph without any is an error.
    """

    stated: Mapping[str, str] = field(default_factory=dict)
    needs_mixers: bool = True
    name: str = "classify"

    def __call__(self, program: Program) -> int:
        """Find the mixers."""
        program.mixers = find_mixers(program.graph_module, program.inferred_axes)
        if not program.mixers and self.needs_mixers:
            raise UnsupportedModelError(
                "No attention was found in this graph: no op mixes tokens along a named axis "
                f"({len(program.graph_module.graph.nodes)} nodes, latents "
                f"{program.latents!r}). Is this the denoising model? If its "
                'latents were mistaken, state them: options={"axes": {"<input>": "b c t h w"}}.'
            )
        inputs = ir.placeholders(program.graph_module.graph)
        prompts = [node for node in inputs if ir.source(node) in program.prompt_inputs]
        program.may_step = may_step(prompts, program.inferred_axes, program.mixers, self.stated)
        return 0


@dataclass(frozen=True)
class FindSites:
    """Find the region of every site and what to cache of it."""

    cut: str
    name: str = "sites"

    def __call__(self, program: Program) -> int:
        """Find the sites; a graph where none can be broadcast is an error."""
        graph = program.graph_module.graph
        if self.cut == OUTPUT:
            program.sites = (whole_site(program.graph_module),)
        else:
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
        verify_coalesced(done.graph_module, program.graph_module, done.sites, self.pattern)
        program.coalesced = done.lines
        if done.count:
            program.graph_module, program.sites = done.graph_module, done.sites
        return done.count

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Do nothing: the call has verified the graph together with the sites."""


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
    """Cut the rewritten graph for the inner compiler, with the model's own fused sums."""

    hoist: bool = True
    name: str = "pieces"

    def __call__(self, program: Program) -> int:
        """Put together what stays together, and group everything outside the branches."""
        fused, num_sums = fuse_sums(program.graph_module)
        if num_sums:
            verify_fused(fused, program.graph_module)
        program.num_apart = num_apart(fused)
        program.graph_module = cut_into_pieces(fused, self.hoist)
        verify(program.graph_module, fused)
        return len(list(program.graph_module.graph.find_nodes(op="call_module")))

    def verify(self, after: fx.GraphModule, before: fx.GraphModule) -> None:
        """Do nothing: the call has verified both steps, between which the ops change."""


def analysis(axes: Mapping[str, str], cut: str) -> tuple[Pass, ...]:
    """The passes that only analyse: axes, binding times, mixers, sites."""
    return (*recognition(axes, needs_mixers=cut != OUTPUT), FindSites(cut))


def recognition(
    axes: Mapping[str, str], needs_mixers: bool = True, is_printed: bool = True
) -> tuple[Pass, ...]:
    """The passes that analyse a graph together with the graphs that feed it."""
    return (InferAxes(axes, is_printed), BindTimes(axes), Classify(axes, needs_mixers))


def rewriting(
    wanted: Callable[[Site], bool], num_samples: int | None = None, hoist: bool = True
) -> tuple[Pass, ...]:
    """The passes that rewrite: branches, probes of so many samples where asked for, pieces.

    Args:
        wanted: which sites become branches.
        num_samples: elements to sample of every output; None inserts no probes.
        hoist: whether what is the same at every step runs once per generation.
    """
    probes = () if num_samples is None else (InsertProbes(num_samples),)
    return (Broadcast(wanted), *probes, CutIntoPieces(hoist))
