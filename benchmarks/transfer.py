"""A tuned plan at another guidance, other prompts, another size and another schedule.

    python -m benchmarks.transfer
    python -m benchmarks.transfer --quick     # few videos; writes no files

One plan is tuned on the demo's joint model: guidance 2, digits 0 to 4, 30 even steps, 8 frames of
16 x 16. Then it is used where something is different. Beside it stand a plan that is tuned there, a
line at the same computed steps, and fewer steps with Adams-Bashforth 2. At another schedule each
computed step moves to the nearest level, and the weights of a gap keep their sum per level.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import pab_compile
from pab_compile.plans.plan import Entry
from pab_compile.tuning.score import Score, psnr

from .frontier.solvers import Velocity, adams_bashforth, levels_of
from .frontier.table import signed
from .frontier.videos import REFERENCES, STEPS, Reuse, Videos
from .frontier.weights import adams, computed_of, gaps_of, taylor
from .results import RESULTS_DIR, versions

SAME = REFERENCES[0]
COMPUTED = 10
TUNED_ON = range(5)
OTHERS = range(5, 10)


@dataclass(frozen=True)
class Place:
    """Where the plan is used.

    Attributes:
        name: what is different there.
        given: arguments of ``Videos``.
    """

    name: str
    given: dict[str, Any] = field(default_factory=dict)

    def videos(self, model: str, held_out: int) -> Videos:
        """Its videos. Prompts are others than those of the fit where nothing else is said."""
        return Videos(model, held_out, **{"shown": TUNED_ON, **self.given})


PLACES = (
    Place("where it was tuned, other noise"),
    Place("other prompts", {"shown": OTHERS}),
    Place("guidance 1", {"guidance": 1.0}),
    Place("guidance 3", {"guidance": 3.0}),
    Place("guidance 5", {"guidance": 5.0}),
    Place("12 frames", {"shape": (12, 16, 16)}),
    Place("8 frames of 24 x 24", {"shape": (8, 24, 24)}),
    Place("20 steps", {"solver_steps": (20, 1.0)}),
    Place("50 steps", {"solver_steps": (50, 1.0)}),
    Place("30 steps of shift 3", {"solver_steps": (STEPS, 3.0)}),
)


def resampled(entries: Sequence[Entry], old: Sequence[float], new: Sequence[float]) -> list[Entry]:
    """Entries for another schedule.

    A gap of the old schedule moves the latents by a combination of outputs. Per level, this
    combination stays. The step that computes moves by its own output, the others share the rest.
    A gap without reuse in the old schedule follows Adams-Bashforth 2.

    Args:
        entries: one per step of the old schedule. Those that reuse are weights.
        old: levels before each step and after the last one.
        new: those of the new schedule.
    """
    computed = computed_of(entries)
    moved = sorted({_nearest(new[:-1], old[step]) for step in computed})
    while len(moved) < len(computed):  # two fell on one step
        moved.append(min(set(range(len(new) - 1)) - set(moved)))
        moved.sort()
    result = adams(moved, new, 1)
    ends = zip(gaps_of(computed, len(entries)), gaps_of(moved, len(new) - 1), strict=True)
    for (start, end), (first, last) in ends:
        weights = [entries[step] for step in range(start + 1, end)]
        lengths = [old[step] - old[step + 1] for step in range(start, end)]
        if weights and last > first + 1:
            moves = np.asarray(lengths[1:]) @ np.asarray(weights)
            moves[-1] += lengths[0]
            whole, own = new[first] - new[last], new[first] - new[first + 1]
            rest = moves * whole / sum(lengths)
            rest[-1] -= own
            entry = tuple((rest / (whole - own)).tolist())
            result[first + 1 : last] = [entry] * (last - first - 1)
    return result


def _nearest(levels: Sequence[float], level: float) -> int:
    return min(range(len(levels)), key=lambda step: abs(levels[step] - level))


def tuned_at(videos: Videos, prompts: int) -> list[Entry]:
    """The entries of a plan that is tuned on other noise."""
    tuned = pab_compile.tune(
        videos.generate,
        range(prompts + 1),
        model=videos.model,
        num_steps=videos.num_steps,
        computed=COMPUTED,
        held_out=1,
        progress=False,
    )
    return list(tuned.found.entries)


def rows_at(place: Place, entries: Sequence[Entry], args: argparse.Namespace) -> dict[str, Any]:
    """Name of a way -> PSNR against all steps there."""
    videos = place.videos(args.model, args.held_out)
    old, new = levels_of(STEPS).tolist(), levels_of(videos.num_steps, videos.shift).tolist()
    here = list(entries) if old == new else resampled(entries, old, new)
    torch.compiler.reset()
    reuse = Reuse(videos.model, "output")
    goals = videos.sample(None, videos.seeds)

    def scored(found: torch.Tensor) -> list[float]:
        return [psnr(v, g) for v, g in zip(found, goals, strict=True)]

    def solved(velocity: Velocity, noise: torch.Tensor) -> torch.Tensor:
        return adams_bashforth(velocity, noise, len(computed_of(here)), videos.shift)

    line = taylor(computed_of(here), videos.num_steps, 1)
    found = {
        "this plan": scored(videos.sample(reuse.with_entries(here), videos.seeds)),
        "a line at its steps": scored(videos.sample(reuse.with_entries(line), videos.seeds)),
        "fewer steps": scored(videos.solve(solved, videos.seeds)),
    }
    torch.compiler.reset()
    own = tuned_at(videos, args.prompts)
    reuse = Reuse(videos.model, "output")
    found["tuned there"] = scored(videos.sample(reuse.with_entries(own), videos.seeds))
    return found


def lines_of(place: Place, found: dict[str, list[float]]) -> Iterator[str]:
    """A line of the table."""
    ours = found["this plan"]
    cells = [place.name, str(Score.of(ours))]
    for values in found.values():
        if values is not ours:
            gain = Score.of([a - b for a, b in zip(ours, values, strict=True)])
            cells.append(f"{Score.of(values)} | {signed(gain)}")
    yield f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=("joint", "deep"), default="joint")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=6, help="videos to fit on")
    parser.add_argument("--quick", action="store_true", help="few videos; writes no files")
    args, console = parser.parse_args(), Console()
    places = PLACES
    if args.quick:
        args.held_out, args.prompts, places = 4, 2, (PLACES[0], PLACES[-1])
    entries = tuned_at(PLACES[0].videos(args.model, 1), args.prompts)
    others = ("a line at its steps", "fewer steps", "tuned there")
    heads = " | ".join(f"{name}, dB | this plan minus that" for name in others)
    lines = [f"| | this plan, dB | {heads} |", "|---|" + "---:|" * 7]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        for place in bar.track(places, description="places"):
            lines += lines_of(place, rows_at(place, entries, args))
            console.print(lines[-1], markup=False, highlight=False, soft_wrap=True)
            if not args.quick:
                write(lines, args)


def write(lines: Sequence[str], args: argparse.Namespace) -> None:
    """The table with the command that prints it."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    command = (
        f"python -m benchmarks.transfer --model {args.model} --held-out {args.held_out} --prompts "
        f"{args.prompts}"
    )
    head = ["# A tuned plan elsewhere", "", f"Printed by `{command}`. {used}.", ""]
    head += [f"PSNR of held-out latents against all steps there, {COMPUTED} computed steps, with "]
    head[-1] += "95 % intervals. Differences are taken video by video."
    (RESULTS_DIR / "transfer.md").write_text("\n".join([*head, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
