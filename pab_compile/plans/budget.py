"""Budgets: which sites are cached if the memory for caches is limited.

Sites are chosen in order of the operations that one byte of their caches saves. What is not chosen
computes at every step. Each branch of guidance has caches of its own, so every site counts once per
lane. Without a budget of the user, ``DEFAULT_BUDGET`` holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pab_compile.errors import OptionError
from pab_compile.passes.sites.site import Site

from .cache_dtype import NARROWEST, kept_bytes
from .plan import Plan
from .share import computed_share

Budget = int | float | str
DEFAULT_BUDGET = 0.5  # of what is free; the other half is left to the model
_MANY = 3  # names in a message
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


@dataclass(frozen=True)
class Claim:
    """What one site would cache.

    Attributes:
        name: of the site.
        num_bytes: most bytes of its cache in one lane.
        saved: operations that its reuse saves per step, on average.
        narrow_bytes: most bytes of its cache in the narrowest dtype; None as ``num_bytes``.
    """

    name: str
    num_bytes: int
    saved: float
    narrow_bytes: int | None = None

    def narrowed(self) -> Claim:
        """The same claim in the narrowest dtype."""
        is_known = self.narrow_bytes is not None
        return replace(self, num_bytes=self.narrow_bytes) if is_known else self


def claims_of(
    sites: Sequence[Site], plan: Plan, kept_in: torch.dtype | None = None
) -> tuple[Claim, ...]:
    """What every site would cache under a plan. A site that the plan never reuses claims nothing.

    Args:
        sites: the sites of one graph, merged if they coalesce.
        plan: the plan. Of a function, every reuse counts the same.
        kept_in: the dtype that outputs are kept in; None as they are.
    """
    shares: dict[Hashable, float] = {}
    found: list[Claim] = []
    for site in sites:
        first = site.singles[0]  # merged sites have equal entries
        if not site.can_broadcast or not plan.may_reuse(first):
            found.append(Claim(site.name, 0, 0.0))
            continue
        pattern = plan.pattern(first)
        if pattern not in shares:  # sites of one pattern are always reused together
            shares[pattern] = computed_share(plan, first)
        reused = 1 - shares[pattern] if shares[pattern] < 1 else 1.0
        saved = reused * sum(single.flops for single in site.singles)
        length = 1 + plan.max_order(first)
        num_bytes, narrow = (length * kept_bytes(site, dtype) for dtype in (kept_in, NARROWEST))
        found.append(Claim(site.name, num_bytes, saved, min(narrow, num_bytes)))
    return tuple(found)


def chosen(claims: Sequence[Claim], limit: int, num_lanes: int) -> frozenset[int]:
    """The positions of the sites that are cached.

    Args:
        claims: one per site.
        limit: bytes for the caches of all lanes.
        num_lanes: number of lanes.
    """
    free = limit
    found: set[int] = set()
    for position in sorted(range(len(claims)), key=lambda n: -_density(claims[n])):
        needed = claims[position].num_bytes * num_lanes
        if needed <= free:
            found.add(position)
            free -= needed
    return frozenset(found)


def chosen_or_narrowed(
    claims: Sequence[Claim], limit: int, num_lanes: int, narrows: bool
) -> tuple[frozenset[int], bool]:
    """The positions of the sites that are cached, and whether in the narrowest dtype.

    Args:
        claims: one per site.
        limit: bytes for the caches of all lanes.
        num_lanes: number of lanes.
        narrows: whether the narrowest dtype is taken if not everything fits.
    """
    kept = chosen(claims, limit, num_lanes)
    if not narrows or len(kept) == len(claims):
        return kept, False
    return chosen([claim.narrowed() for claim in claims], limit, num_lanes), True


def _density(claim: Claim) -> float:
    return claim.saved / claim.num_bytes if claim.num_bytes else float("inf")


def budget_line(
    limit: int,
    num_lanes: int,
    total: int,
    left: Sequence[str],
    is_sent: bool = False,
    is_narrow: bool = False,
) -> str:
    """What a budget leaves out, for people.

    Args:
        limit: bytes for all lanes.
        num_lanes: number of lanes.
        total: number of sites.
        left: names of the sites that are not cached on the device.
        is_sent: whether these are cached in the memory of the host.
        is_narrow: whether what is cached is in the narrowest dtype.
    """
    how = " in float8_e4m3" if is_narrow else ""
    if not left:
        return (
            f"the cache budget of {limit / 2**20:.1f} MiB holds all {total} sites{how} for "
            f"{num_lanes} call(s) per step"
        )
    rest = "go to the memory of the host" if is_sent else "compute at every step"
    named = ", ".join(left[:_MANY]) + (", ..." if len(left) > _MANY else "")
    return (
        f"the cache budget of {limit / 2**20:.1f} MiB holds {total - len(left)} of {total} sites"
        f"{how} for {num_lanes} call(s) per step; {len(left)} {rest}: {named}"
    )


def check_budget(budget: object) -> None:
    """Refuse what is no budget.

    Raises:
        OptionError: it is not a number of bytes, a text such as ``"8GiB"``, or a fraction.
    """
    if isinstance(budget, str) and _bytes_in(budget) is not None:
        return
    if isinstance(budget, float) and 0 < budget <= 1:
        return
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return
    raise OptionError(
        f'cache_budget={budget!r} is no amount of memory. Give bytes, a text such as "8GiB" or '
        '"500MB", or a float up to 1: the fraction of the memory that is free on the device.'
    )


def in_bytes(budget: Budget, device: torch.device) -> int:
    """A budget in bytes. A fraction is of what is free on the device at this moment."""
    if isinstance(budget, str):
        found = _bytes_in(budget)
        assert found is not None, budget
        return found
    if isinstance(budget, int):
        return budget
    free = free_bytes(device)
    if free is None:
        raise OptionError(
            f"cache_budget={budget!r} is a fraction of the free memory, which torch does not know "
            f'of {device.type!r}. Give bytes, or a text such as "8GiB".'
        )
    return int(budget * free)


def _bytes_in(text: str) -> int | None:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) == 0:
        return None
    return int(float(match[1]) * _UNITS[match[2]])


def free_bytes(device: torch.device) -> int | None:
    """Memory that is free on a device now; None if that is not known.

    What torch's allocator reserved and does not use is free. So are the host's caches of files.
    """
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserved
    if device.type != "cpu":
        return None
    try:
        available = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if available is not None:
            return 1024 * int(available[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):  # no such files, names or functions here
        return None
