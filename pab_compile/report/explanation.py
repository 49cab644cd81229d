"""Explanations: what was found in a model, and what the plan does with it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pab_compile.passes.sites.site import ATTENTION_KINDS, Site
from pab_compile.plans.cache_dtype import kept_bytes
from pab_compile.plans.plan import Plan

from .draw import SiteBox


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
        cache_bytes: most bytes in its cache in one lane, for ``history`` outputs; 0 if the plan
            never reuses it. Of sites that cache one sum, the first one has the bytes of the sum.
        flops: floating point operations that one reuse saves.
        reason: evidence for the kind, what its residual branch holds, and why it is not broadcast
            if it is not.
        history: most outputs that are cached at once: one more than the order of the prediction.
        branch: what its residual branch holds beside the attention, or why the branch is not one
            site; ``""`` if there is nothing to say.
        kept_with: the name of the site that has the bytes, where several cache one sum.
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
    kept_with: str = ""

    @property
    def is_reused(self) -> bool:
        """Whether the plan reuses it at some step."""
        return self.cache_bytes > 0 or bool(self.kept_with)

    @property
    def mixes(self) -> str:
        """The axes that it mixes: ``h*w``, or ``h*w <- text`` for queries and keys."""
        query, key = "*".join(self.query_axes) or "-", "*".join(self.key_axes) or "-"
        return query if query == key or not self.key_axes else f"{query} <- {key}"

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
    is_reused = site.can_broadcast and plan.may_reuse(site)
    if is_reused:
        history += plan.max_order(site)
    if site.can_broadcast and not is_reused:
        reason += "; not broadcast: the plan computes it at every step"
    return SiteReport(
        name=site.name,
        kind=site.kind,
        mechanism=site.mechanism,
        module=site.module,
        query_axes=site.query_axes,
        key_axes=site.key_axes,
        range=steps,
        cache_bytes=history * kept_bytes(site, kept_in) if is_reused else 0,
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


def site_boxes(sites: Sequence[SiteReport]) -> list[SiteBox]:
    """Sites as they are drawn."""
    return [
        SiteBox(
            name=site.name,
            kind=site.kind,
            lines=(
                site.mechanism if site.kind == "mlp" else f"{site.mechanism}  {site.mixes}",
                *([f"in the sum of {site.kept_with}"] if site.kept_with else []),
            ),
            range=site.range or 2,
            cache_bytes=site.cache_bytes,
        )
        for site in sites
    ]


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
        takes_whole: whether its output could be reused as a whole, although nothing in it can.
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
    takes_whole: bool = False

    def with_sums(
        self, merged: Sequence[Site], plan: Plan, kept_in: torch.dtype | None = None
    ) -> Finding:
        """The finding, if some sites cache one sum together.

        Args:
            merged: the sites that are cached.
            plan: the plan.
            kept_in: the dtype that outputs are kept in; None as they are.
        """
        of_sum: dict[str, tuple[int, str]] = {}
        for site in merged:
            first, num_bytes = site.singles[0].name, cache_bytes([site], plan, kept_in)
            for single in site.singles if num_bytes and site.parts else ():
                is_first = single.name == first
                of_sum[single.name] = (num_bytes, "") if is_first else (0, first)
        sites = [
            dataclasses.replace(
                site, cache_bytes=of_sum[site.name][0], kept_with=of_sum[site.name][1]
            )
            if site.name in of_sum
            else site
            for site in self.sites
        ]
        total = cache_bytes(merged, plan, kept_in)
        return dataclasses.replace(self, sites=tuple(sites), cache_bytes=total)


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
        """A table of the sites in 80 columns. Sites that differ only in their name have one row."""
        from .explanation_text import explanation_lines

        return "\n".join(explanation_lines(self))

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from .page import explanation_fragment

        return explanation_fragment(self)


def similar(sites: Sequence[SiteReport]) -> list[list[SiteReport]]:
    """Groups of sites that differ only in their name, in order of the first of each group."""
    groups: dict[tuple[Any, ...], list[SiteReport]] = {}
    for site in sites:
        key = (site.kind, site.mechanism, site.query_axes, site.key_axes, site.range, site.flops)
        key = (*key, site.branch, site.is_reused)
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def group_name(group: Sequence[SiteReport]) -> str:
    """What a group of similar sites is called."""
    return group[0].name if len(group) == 1 else f"{len(group)} like {group[0].name}"
