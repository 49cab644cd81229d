"""Explanations: what was found in a model, and what the plan does with it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pab_compile.passes.sites.site import ATTENTION_KINDS, OUTPUT, Site
from pab_compile.plans.cache_dtype import kept_bytes
from pab_compile.plans.plan import Plan

from .draw import SiteBox
from .table import table_lines


@dataclass(frozen=True)
class SiteReport:
    """One site as users see it.

    Attributes:
        name: unique in the model; the module path where it is known.
        kind: one of ``passes.sites.site.KINDS``.
        mechanism: ``sdpa``, ``softmax``, ``linear`` or ``mlp``.
        module: path of the module, or ``""``.
        query_axes: axes of the query sequence, outer to inner.
        key_axes: axes of the key sequence.
        range: it computes at every n-th step inside the window. None: the plan has no such number.
        cache_bytes: most bytes in its cache in one lane, for ``history`` outputs.
        flops: floating point operations that one reuse saves.
        reason: evidence for the kind, what its residual branch holds, and why it is not broadcast
            if it is not.
        history: most outputs that are cached at once: one more than the order of the prediction.
        branch: what its residual branch holds beside the attention, or why the branch is not one
            site; ``""`` if there is nothing to say.
    """

    name: str
    kind: str
    mechanism: str
    module: str
    query_axes: tuple[str, ...]
    key_axes: tuple[str, ...]
    range: int | None
    cache_bytes: int
    flops: int
    reason: str
    history: int = 1
    branch: str = ""

    def to_json(self) -> dict[str, Any]:
        """All fields, in types of JSON."""
        return dataclasses.asdict(self)


def describe_site(site: Site, plan: Plan, kept_in: torch.dtype | None = None) -> SiteReport:
    """A site, and what a plan does with it.

    Args:
        site: the site.
        plan: the plan.
        kept_in: the dtype that outputs are kept in; None as they are.
    """
    steps = plan.range_of(site) if site.can_broadcast else 1
    reason, history = "; ".join(filter(None, (site.reason, site.branch))), 1
    if plan.may_reuse(site):
        history += plan.max_order(site)
    if site.can_broadcast and not plan.may_reuse(site):
        reason += "; not broadcast: the plan computes it at every step"
    return SiteReport(
        name=site.name,
        kind=site.kind,
        mechanism=site.mechanism,
        module=site.module,
        query_axes=site.query_axes,
        key_axes=site.key_axes,
        range=steps,
        cache_bytes=history * kept_bytes(site, kept_in),
        flops=site.flops,
        reason=reason,
        history=history,
        branch=site.branch,
    )


def cache_bytes(sites: Sequence[Site], plan: Plan, kept_in: torch.dtype | None = None) -> int:
    """Most bytes in the cache of one lane.

    Args:
        sites: the sites, some of which may be sums of others.
        plan: the plan.
        kept_in: the dtype that outputs are kept in; None as they are.
    """
    total = 0
    for site in sites:
        first = site.singles[0]  # merged sites have equal entries
        if site.can_broadcast and plan.may_reuse(first):
            total += kept_bytes(site, kept_in) * (1 + plan.max_order(first))
    return total


def site_box(site: Site, plan: Plan, kept_in: torch.dtype | None = None) -> SiteBox:
    """A site as it is drawn."""
    report = describe_site(site, plan, kept_in)
    axes = f"{_axes(report.query_axes)} <- {_axes(report.key_axes)}"
    return SiteBox(
        name=site.name,
        kind=site.kind,
        lines=(site.mechanism if site.kind == "mlp" else f"{site.mechanism}  {axes}",),
        range=report.range or 2,
        cache_bytes=report.cache_bytes if plan.may_reuse(site) else 0,
    )


@dataclass(frozen=True)
class Finding:
    """What was found in one graph of a forward. It has no sites if nothing can be broadcast.

    Attributes:
        sites: in model order.
        num_nodes: ops in the captured graph.
        total_flops: floating point operations of one run.
        clock: name of the timestep input.
        latents: name of the denoised input.
        notes: what the analysis was not sure of, and what the rewrite chose.
        seconds: pass name -> seconds.
        cache_bytes: most bytes in the cache of one lane. Coalesced sites cache their sum.
        reuse_flops: floating point operations of a step that reuses all that the plan may reuse.
            None where nothing can be broadcast.
        reason: why the graph is computed at every step; ``""`` if there is nothing to say.
    """

    sites: tuple[SiteReport, ...] = ()
    num_nodes: int = 0
    total_flops: int = 0
    clock: str = ""
    latents: str = ""
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    cache_bytes: int = 0
    reuse_flops: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """What ``explain`` found: the sites in model order, and the graph's totals.

    Attributes:
        sites: every attention and every residual branch without one.
        num_nodes: ops in the captured graph(s).
        total_flops: floating point operations of one call.
        clock: name of the timestep input.
        latents: name of the denoised input.
        notes: what the analysis was not sure of.
        seconds: pass name -> seconds.
        cache_bytes: most bytes in the cache of one lane. Coalesced sites cache their sum.
        reuse_flops: floating point operations of a step that reuses all that the plan may reuse.
        num_graphs: number of graphs of the forward.
        breaks: why Dynamo broke the forward, each reason once.
        num_calls: calls of the model per step, each with caches of its own; None if the model has
            not run.
    """

    sites: tuple[SiteReport, ...]
    num_nodes: int
    total_flops: int
    clock: str
    latents: str
    notes: tuple[str, ...]
    seconds: dict[str, float]
    cache_bytes: int = 0
    reuse_flops: int = 0
    num_graphs: int = 1
    breaks: tuple[str, ...] = ()
    num_calls: int | None = None

    @staticmethod
    def of(
        findings: Sequence[Finding], breaks: Sequence[str], num_calls: int | None = None
    ) -> Explanation:
        """What was found in all graphs of a forward.

        Args:
            findings: one per graph. At least one of them has sites.
            breaks: why Dynamo broke the forward after each graph.
            num_calls: calls of the model per step, if it is known.
        """
        first = next(finding for finding in findings if finding.sites)
        notes = [note for finding in findings for note in finding.notes]
        reasons = [finding.reason for finding in findings if finding.reason]
        return Explanation(
            sites=tuple(site for finding in findings for site in finding.sites),
            num_nodes=sum(finding.num_nodes for finding in findings),
            total_flops=sum(finding.total_flops for finding in findings),
            clock=first.clock,
            latents=first.latents,
            notes=tuple(
                dict.fromkeys([*notes, *(f"computed at every step: {r}" for r in reasons)])
            ),
            seconds=first.seconds,
            cache_bytes=sum(finding.cache_bytes for finding in findings),
            reuse_flops=sum(
                finding.total_flops if finding.reuse_flops is None else finding.reuse_flops
                for finding in findings
            ),
            num_graphs=len(findings),
            breaks=tuple(dict.fromkeys(filter(None, breaks))),
            num_calls=num_calls,
        )

    def counts(self) -> dict[str, int]:
        """Number of attention sites per kind. Kinds without sites are left out.

        Residual branches without attention (``mlp``) do not count.
        """
        found = Counter(site.kind for site in self.sites)
        return {kind: found[kind] for kind in ATTENTION_KINDS if found[kind]}

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        """A table of the sites. Sites that differ only in their name have one line."""
        headings = ("sites", "kind", "mechanism", "query <- key", "range")
        numbers = ("cache MiB", "MFLOP", "share")
        rows = [self._row(group) for group in _similar(self.sites)]
        lines = table_lines(
            (*headings, *numbers), rows, num_left=len(headings), title=self._title()
        )
        if self.num_calls is not None and self.num_calls > 1:
            gib = self.num_calls * self.cache_bytes / 2**30
            lines.append(f"The {self.num_calls} calls of a step cache {gib:.3f} GiB together.")
        always = [group for group in _similar(self.sites) if group[0].range == 1]
        lines += ["Computed at every step:"] if always else []
        lines += [f"  {_name(group)} ({group[0].kind}): {group[0].reason}" for group in always]
        said = [group for group in _similar(self.sites) if group[0].branch and group not in always]
        lines += ["Residual branches:"] if said else []
        lines += [f"  {_name(group)} ({group[0].kind}): {group[0].branch}" for group in said]
        if self.num_graphs > 1:
            lines.append(f"The forward runs as {self.num_graphs} graphs; Dynamo broke it up at:")
            lines += [f"  {reason}" for reason in self.breaks]
        lines += [f"Note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _row(self, group: Sequence[SiteReport]) -> Sequence[str]:
        site, flops = group[0], sum(site.flops for site in group)
        return (
            _name(group),
            site.kind,
            site.mechanism,
            f"{_axes(site.query_axes)} <- {_axes(site.key_axes)}",
            "plan" if site.range is None else str(site.range),
            f"{sum(site.cache_bytes for site in group) / 2**20:.2f}",
            f"{flops / 1e6:.1f}",
            f"{flops / self.total_flops:.1%}" if self.total_flops else "-",
        )

    def _title(self) -> str:
        counted = ", ".join(f"{number} {kind}" for kind, number in self.counts().items())
        counted = counted or (
            "the whole output" if self.sites[0].kind == OUTPUT else "no attention"
        )
        return (
            f"{counted}; latents {self.latents!r}, clock {self.clock!r}; "
            f"caches {self.cache_bytes / 2**30:.3f} GiB per call"
        )


def _axes(axes: Sequence[str]) -> str:
    return "*".join(axes) or "-"


def _similar(sites: Sequence[SiteReport]) -> list[list[SiteReport]]:
    """Groups of sites that differ only in their name, in order of the first of each group."""
    groups: dict[tuple[Any, ...], list[SiteReport]] = {}
    for site in sites:
        key = (site.kind, site.mechanism, site.query_axes, site.key_axes, site.range, site.flops)
        key = (*key, site.branch)
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _name(group: Sequence[SiteReport]) -> str:
    return group[0].name if len(group) == 1 else f"{len(group)} like {group[0].name}"
