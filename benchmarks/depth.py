"""Which blocks of a deeper model to compute, at equal operations; the model `deep` of the examples.

    python -m benchmarks.depth
    python -m benchmarks.depth --quick        # few videos; writes no files

Some steps compute the whole model. At the other steps some sites combine their last outputs, and
the others compute ("fresh"). The more is fresh, the fewer whole steps fit into the same operations.
So every variant is compared with the plan that combines all sites and costs the same (on the line
between the two nearest numbers of whole steps). Then the weights of the combination are fitted in
closed loop: one set for all sites, or one for each group of sites.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pab_compile
from pab_compile.passes.sites.site import Site
from pab_compile.plans.plan import COMPUTE
from pab_compile.tuning.row import Row
from pab_compile.tuning.score import Score

from .examples import digits
from .frontier.solvers import levels_of
from .frontier.table import signed
from .frontier.videos import REFERENCES, STEPS, Function, Reuse, Videos
from .frontier.weights import FIRST, after_the_first, taylor
from .results import RESULTS_DIR, versions

BUDGETS = (20, 15, 10)
PROBE = 0.5
ROUNDS = 30
RIDGE = 1e-6


def block_of(name: str) -> int:
    """The number of the block that a site is in."""
    found = re.search(r"\.(\d+)\.", f"{name}.")
    if found is None:
        raise ValueError(f"the site {name!r} names no block")
    return int(found[1])


@dataclass(frozen=True)
class Where:
    """A site by its place: block, number of blocks, and whether it is an attention."""

    block: int
    num_blocks: int
    is_attention: bool

    @property
    def third(self) -> int:
        """0 for the first third of the blocks."""
        return 3 * self.block // self.num_blocks


Fresh = Callable[[Where], bool]
Group = Callable[[Where], int]
FRESH: dict[str, Fresh] = {
    "first block fresh": lambda w: w.block == 0,
    "last block fresh": lambda w: w.block == w.num_blocks - 1,
    "first and last block fresh": lambda w: w.block in (0, w.num_blocks - 1),
    "two first and two last fresh": lambda w: not 1 < w.block < w.num_blocks - 2,
    "first third fresh": lambda w: w.third == 0,
    "middle third fresh": lambda w: w.third == 1,
    "last third fresh": lambda w: w.third == 2,
    "attention alone combined": lambda w: not w.is_attention,
    "MLPs alone combined": lambda w: w.is_attention,
}
PER_SITE = "a set per site"
GROUPS: dict[str, Group] = {
    "one set for all": lambda w: 0,
    "attention and MLPs apart": lambda w: int(w.is_attention),
    "thirds apart": lambda w: w.third,
    "thirds, attention and MLPs apart": lambda w: 2 * w.third + w.is_attention,
    PER_SITE: lambda w: 2 * w.block + w.is_attention,
}


class Depth:
    """The model with its sites and what they cost.

    Args:
        name: of the model.
        held_out: number of videos that are measured.
        fitted: number of other videos that weights are fitted on.
    """

    def __init__(self, name: str, held_out: int, fitted: int) -> None:
        self.videos = Videos(name, held_out)
        trained = self.videos.trained
        options = {"ranges": "linear3", "coalesce": False}
        with torch.no_grad():
            found = pab_compile.explain(trained.model, options=options, **trained.example_inputs())
        self.share = {site.name: site.flops / found.total_flops for site in found.sites}
        kinds = {site.name: site.kind for site in found.sites}
        blocks = 1 + max(map(block_of, kinds))
        self.places = {n: Where(block_of(n), blocks, kind != "mlp") for n, kind in kinds.items()}
        self.reuse = Reuse(self.videos.model, "branch")
        self.fit_seeds = range(fitted)
        self.fit_goals = self.paths(None, self.fit_seeds)

    def fresh_share(self, fresh: Fresh) -> float:
        """The operations of a step that combines, as a share of a whole step."""
        return 1 - sum(s for n, s in self.share.items() if not fresh(self.places[n]))

    def run(self, function: Function) -> dict[str, list[float]]:
        """The PSNR of the held-out videos."""
        call = self.reuse.with_function(function)
        return self.videos.score(self.videos.sample(call, self.videos.seeds))

    @torch.no_grad()
    def paths(
        self, function: Function | None, seeds: Sequence[int], end: int = STEPS
    ) -> list[torch.Tensor]:
        """Latents of the videos to fit on, before each step up to one."""
        call = None if function is None else self.reuse.with_function(function)
        velocity, levels = self.videos.velocity(seeds, call), levels_of(STEPS)
        path = [torch.cat([self.videos.noise_of(seed) for seed in seeds])]
        pab_compile.reset()
        timesteps = 1000 * levels[:-1]
        for step, timestep in enumerate(timesteps):
            if step == end:
                break
            now = velocity(path[-1], timestep)
            path.append(path[-1] + (levels[step + 1] - levels[step]) * now)
        return path

    def line(self, fresh: Fresh, whole: int) -> Function:
        """Sites that are not fresh follow the line through their last two outputs."""
        entries = taylor(after_the_first(whole, STEPS), STEPS, 1)

        def function(site: Site, step: int, *_: object) -> tuple[float, ...] | None:
            entry = entries[step]
            is_fresh = entry == COMPUTE or fresh(self.places[site.name])
            return None if is_fresh else entry  # type: ignore[return-value]

        return function


def rows_of(depth: Depth, fresh: Fresh, group: Group, rows: Mapping[int, Row]) -> Function:
    """Sites combine by the weights of their group."""
    entries = {number: row.entries() for number, row in rows.items()}

    def function(site: Site, step: int, *_: object) -> tuple[float, ...] | None:
        place = depth.places[site.name]
        entry = entries[group(place)][step]
        return None if entry == COMPUTE or fresh(place) else entry  # type: ignore[return-value]

    return function


def fitted(
    depth: Depth,
    whole: int,
    fresh: Fresh,
    group: Group,
    advance: Callable[[], object],
) -> Function:
    """Weights per group, fitted gap by gap in closed loop on other videos.

    The latents at the end of a gap are nearly affine in the weights of the gap. So runs with one
    weight moved give the function, and least squares the weights (of the mean PSNR in dB).
    """
    groups = sorted({group(w) for w in depth.places.values() if not fresh(w)})
    start = Row.of([1.0] * STEPS, after_the_first(whole, STEPS))
    rows = dict.fromkeys(groups, start)

    def at(rows: Mapping[int, Row], end: int) -> torch.Tensor:
        advance()
        path = depth.paths(rows_of(depth, fresh, group, rows), depth.fit_seeds, end)
        return path[end].flatten(1).double()

    for gap in start.gaps:
        end, count = start.end(gap), len(start.changes[gap])
        here = at(rows, end)
        places = [(number, i) for number in groups for i in range(count)]
        moves = []
        for number, i in places:
            change = [PROBE * (place == i) for place in range(count)]
            moved = {**rows, number: rows[number].changed(gap, change)}
            moves.append((at(moved, end) - here) / PROBE)
        missing = depth.fit_goals[end].flatten(1).double() - here
        found = least_log(torch.stack(moves, 1), missing)
        for number in groups:
            change = [x for x, (owner, _) in zip(found, places, strict=True) if owner == number]
            rows[number] = rows[number].changed(gap, change)
    return rows_of(depth, fresh, group, rows)


def least_log(moves: torch.Tensor, missing: torch.Tensor) -> list[float]:
    """The sum of moves that brings the mean logarithm of the squared errors to its least.

    Args:
        moves: ``[videos, numbers, latents]``.
        missing: ``[videos, latents]``.
    """
    grams, products = moves @ moves.mT, (moves @ missing[..., None])[..., 0]
    change = torch.zeros_like(products[0])
    for _ in range(ROUNDS):
        left = missing - torch.einsum("n,vnl->vl", change, moves)
        weights = 1 / left.square().sum(1).clamp(min=1e-30)
        gram = torch.einsum("v,vnm->nm", weights, grams)
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        change = torch.linalg.solve(gram, torch.einsum("v,vn->n", weights, products))
    return change.tolist()


Psnr = dict[str, list[float]]


class Whole:
    """Plans that combine all sites along a line, by the number of whole steps.

    Args:
        depth: the model.
    """

    def __init__(self, depth: Depth) -> None:
        self.depth = depth
        self.found: dict[int, Psnr] = {}
        self.share = depth.fresh_share(nothing)

    def at(self, whole: int) -> Psnr:
        """With a number of whole steps."""
        if whole not in self.found:
            self.found[whole] = self.depth.run(self.depth.line(nothing, whole))
        return self.found[whole]

    def costing(self, cost: float) -> Psnr:
        """With operations between two numbers of whole steps."""
        whole = (cost - STEPS * self.share) / (1 - self.share)
        low = min(max(math.floor(whole), FIRST), STEPS - 1)
        pairs = {n: zip(self.at(low)[n], self.at(low + 1)[n], strict=True) for n in REFERENCES}
        return {n: [a + (whole - low) * (b - a) for a, b in pair] for n, pair in pairs.items()}


def nothing(where: Where) -> bool:
    """No site is fresh."""
    return False


def whole_steps(budget: float, share: float) -> int:
    """How many whole steps fit into a budget, if the others cost a share."""
    return round((budget - STEPS * share) / (1 - share))


def by_line(depth: Depth, all_: Whole, budgets: Sequence[int]) -> Iterator[str]:
    """What is fresh, at equal operations, with lines."""
    yield "| | cost, of 30 calls | whole steps | " + _heads("minus all combined, equal cost")
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for budget in budgets:
        whole = whole_steps(budget, all_.share)
        yield _cells("all sites combined", whole, all_.share, all_.at(whole), None)
        for name, fresh in FRESH.items():
            share = depth.fresh_share(fresh)
            whole = whole_steps(budget, share)
            if not FIRST < whole < STEPS:
                continue
            found = depth.run(depth.line(fresh, whole))
            equal = all_.costing(whole + (STEPS - whole) * share)
            yield _cells(name, whole, share, found, equal)
    yield ""


def by_fit(
    depth: Depth, computed: Sequence[int], fresh: Mapping[str, Fresh], advance: Callable[[], object]
) -> Iterator[str]:
    """Fitted weights: one set for all sites, or several."""
    yield "| | cost, of 30 calls | whole steps | " + _heads("minus one set, all combined")
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for whole in computed:
        common: Psnr | None = None
        share = depth.fresh_share(nothing)
        for name in GROUPS:
            if name == PER_SITE:  # takes by far the longest, so it comes last
                yield from _ends(depth, whole, fresh, common or {}, advance)
            found = depth.run(fitted(depth, whole, nothing, GROUPS[name], advance))
            yield _cells(f"all combined, {name}", whole, share, found, common)
            common = common or found
    yield ""


def _ends(
    depth: Depth,
    whole: int,
    fresh: Mapping[str, Fresh],
    common: Psnr,
    advance: Callable[[], object],
) -> Iterator[str]:
    """Some blocks are fresh, with fitted weights, at the cost of a plan that combines all."""
    for name, rule in fresh.items():
        part, share = depth.fresh_share(rule), depth.fresh_share(nothing)
        fewer = whole_steps(whole + (STEPS - whole) * share, part)
        if not FIRST <= fewer < STEPS:
            continue
        found = depth.run(fitted(depth, fewer, rule, GROUPS["one set for all"], advance))
        yield _cells(f"{name}, one set for all", fewer, part, found, common)


def _heads(against: str) -> str:
    return " | ".join(f"to {name}, dB | {against}" for name in REFERENCES) + " |"


def _cells(label: str, whole: int, share: float, found: Psnr, other: Psnr | None) -> str:
    cells = [label, f"{whole + (STEPS - whole) * share:.1f}", str(whole)]
    for name in REFERENCES:
        cells.append(str(Score.of(found[name])))
        if other is None:
            cells.append("-")
        else:
            gain = Score.of([a - b for a, b in zip(found[name], other[name], strict=True)])
            cells.append(signed(gain))
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=digits.FAMILIES, default="deep")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--fitted", type=int, default=4, help="other videos to fit on")
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--computed", nargs="+", type=int, default=[10, 7], help="of the fits")
    parser.add_argument("--quick", action="store_true", help="few videos; writes no files")
    args, console = parser.parse_args(), Console()
    if args.quick:
        args.held_out, args.fitted, args.budgets, args.computed = 4, 2, [15], []
    depth = Depth(args.model, args.held_out, args.fitted)
    lines: list[str] = [
        f"A step that combines all sites costs {depth.fresh_share(nothing):.0%} of a whole one.",
        "",
    ]
    ends = {
        name: FRESH[name]
        for name in ("first and last block fresh", "first block fresh", "last block fresh")
    }
    with Progress(
        TextColumn("runs"), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bar:
        task = bar.add_task("runs", total=None)

        def advance() -> None:
            bar.advance(task)

        parts = {
            "What is fresh, lines": by_line(depth, Whole(depth), args.budgets),
            "Fitted weights": by_fit(depth, args.computed, ends, advance),
        }
        for title, rows in parts.items():
            lines += [f"### {title}", ""]
            for line in rows:
                lines.append(line)
                console.print(line, markup=False, highlight=False, soft_wrap=True)
                advance()
                if not args.quick:
                    write(lines, args)


def write(lines: Sequence[str], args: argparse.Namespace) -> None:
    """The tables with the command that prints them."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    command = (
        f"python -m benchmarks.depth --model {args.model} --held-out {args.held_out} --fitted "
        f"{args.fitted} --budgets {' '.join(map(str, args.budgets))} --computed "
        f"{' '.join(map(str, args.computed))}"
    )
    head = [
        "# Which blocks of a deeper model to compute",
        "",
        f"Printed by `{command}`. {used}.",
        "",
    ]
    head += ["PSNR of held-out latents with 95 % intervals; differences video by video.", ""]
    (RESULTS_DIR / "depth.md").write_text("\n".join([*head, *lines]).rstrip() + "\n")


if __name__ == "__main__":
    main()
