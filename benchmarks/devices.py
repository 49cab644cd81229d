"""What 8, 16 and 64 devices exchange, take and hold for videos of 720p, predicted.

    python -m benchmarks.devices            # prints the tables
    python -m benchmarks.devices --write    # and writes benchmarks/results/devices.md

Open-Sora 1.2 and Wan 2.1 14B at their real sizes, described only: no weights, no run. Guidance is
one call of two rows in the first and two calls in the second one. All devices share the tokens. A
device is taken to compute 4e14 operations per second; links are those of `pab_compile.Machine`:
300 GB/s inside a node of eight and 40 GB/s between nodes, 20 and 40 microseconds per collective.
These are assumptions. Memory is that of the weights in bfloat16 and of the caches, without
activations. All figures grow with the number of blocks by equal amounts, so they are read off one
block and two.

*Fewest bytes* is the first plan of `least_traffic` among those with ranges per kind in the window
of PAB246 that compute as many sites as PAB246 does. Bytes say nothing of the error of a plan.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import pab_compile
from pab_compile import CommReport, Machine, Schedule, ShardingError
from pab_compile.errors import OptionError
from pab_compile.forecast.predict import options_for, predict
from pab_compile.options import parse_options
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.shard import Ranks
from pab_compile.passes.program import Program
from pab_compile.passes.rewrite.coalesce import coalesce
from pab_compile.plans.presets import PRESETS
from pab_compile.plans.share import assumed_schedule, computed_share
from pab_compile.report.explanation import cache_bytes
from pab_compile.traffic.comm import look_at

from . import examples  # noqa: F401  (it puts the examples on the path)
from .real_models import REAL_MODELS

RESULTS = Path(__file__).parent / "results" / "devices.md"
DEVICES = (8, 16, 64)
MACHINE = Machine(4e14)
GIB = 2**30
SHOWN = 8
_PUBLISHED = "PAB246 as published"
HEAD = [
    "| devices | plan | axis | GB sent | seconds | in collectives | GiB per device |",
    "|---|---|---|---|---|---|---|",
]


@dataclass(frozen=True)
class Video:
    """A model with the inputs of one call, and how often it is called per step.

    Attributes:
        name: as it is known, with the size of the video.
        blocks: their number.
        build: number of blocks -> the model.
        inputs: of one call.
        calls: per step.
    """

    name: str
    blocks: int
    build: Callable[[int], torch.nn.Module]
    inputs: Mapping[str, Any]
    calls: int


@dataclass(frozen=True)
class Figures:
    """What a device does in a generation and what it holds."""

    flops: float
    collectives: float
    sent: float
    held: float

    def at(self, blocks: int, two: Figures) -> Figures:
        """Those of several blocks, if these are of one block and the others of two."""
        grown = (
            one + (blocks - 1) * (more - one)
            for one, more in zip(self.values, two.values, strict=True)
        )
        return Figures(*grown)

    @property
    def values(self) -> tuple[float, ...]:
        """All of them."""
        return (self.flops, self.collectives, self.sent, self.held)


def open_sora() -> Video:
    """1280 x 720, 51 frames: 15 frames of 90 x 160 latents, both prompts in one call."""
    from models.open_sora import XL_2, STDiT3

    def build(blocks: int) -> torch.nn.Module:
        with torch.device("meta"):
            model = STDiT3(replace(XL_2, depth=blocks)).to(torch.bfloat16)
        return model.eval().requires_grad_(False)

    with torch.device("meta"):
        inputs = {
            "x": torch.empty(2, 4, 15, 90, 160, dtype=torch.bfloat16),
            "timestep": torch.empty(2),
            "y": torch.empty(2, 1, 300, 4096, dtype=torch.bfloat16),
            **{name: torch.empty(1) for name in ("fps", "height", "width")},
        }
    return Video("Open-Sora 1.2, 1280x720, 51 frames", XL_2.depth, build, inputs, 1)


def wan() -> Video:
    """1280 x 720, 81 frames."""
    real = REAL_MODELS["Wan 2.1 14B"]

    def build(blocks: int) -> torch.nn.Module:
        return replace(real, config={**real.config, "num_layers": blocks}).build()

    return Video("Wan 2.1 14B, 1280x720, 81 frames", 40, build, real.inputs(), 2)


class Described:
    """A video whose model is traced once per cut and number of blocks."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self._programs: dict[tuple[str, int], Program] = {}

    def program(self, options: Mapping[str, Any], blocks: int) -> Program:
        """What is found in the model."""
        parsed = parse_options({**options, "shard": None})
        if (key := (parsed.cut, blocks)) not in self._programs:
            model = self.video.build(blocks)
            (self._programs[key],) = look_at(model, (), self.video.inputs, parsed)
        return self._programs[key]

    def report(self, options: Mapping[str, Any], blocks: int, num_ranks: int) -> CommReport:
        """What devices exchange."""
        parsed = options_for(options, num_ranks)
        schedule = assumed_schedule(parsed.make_plan())
        return predict(self.program(options, blocks), parsed, num_ranks, schedule)

    def figures(self, options: Mapping[str, Any], num_ranks: int) -> tuple[Figures, CommReport]:
        """What a device does with all blocks, along the axis that is best for two of them."""
        report = self.report(options, 2, num_ranks)
        options = {**options, "shard": report.axis}
        one, two = (self._of(options, blocks, num_ranks) for blocks in (1, 2))
        return one.at(self.video.blocks, two), report

    def _of(self, options: Mapping[str, Any], blocks: int, num_ranks: int) -> Figures:
        report, calls = self.report(options, blocks, num_ranks), self.video.calls
        model = self.video.build(blocks)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        size = dict(candidates(self.program(options, blocks).inferred_axes))[report.axis].size
        share = max(Ranks(num_ranks).counts(size)) / size  # of the device with most tokens
        caches = calls * self._cached(options, blocks) * share
        return Figures(
            calls * report.work.flops,
            calls * report.num_collectives,
            calls * report.wire_bytes,
            weights + caches,
        )

    def _cached(self, options: Mapping[str, Any], blocks: int) -> int:
        """Bytes of the caches of one call on one device."""
        parsed, program = parse_options({**options, "shard": None}), self.program(options, blocks)
        plan, sites = parsed.make_plan(), program.sites
        if parsed.coalesce:
            sites = coalesce(program.graph_module, sites, plan.pattern).sites
        return cache_bytes(sites, plan)


def as_many_sites(program: Program, schedule: Schedule, preset: str) -> Iterator[dict[str, Any]]:
    """Plans with ranges per kind that compute as many sites as a preset, in its window."""
    window, ranges = PRESETS[preset].window, PRESETS[preset].ranges
    reused = [s for s in program.sites if s.can_broadcast and s.kind in ranges]
    kinds = sorted({site.kind for site in reused} - {"mlp"})
    sites = {kind: [site for site in reused if site.kind == kind] for kind in kinds}

    def computed(kind: str, length: int) -> int:
        """Steps at which the sites of a kind compute."""
        plan = parse_options({"ranges": {kind: length}, "window": window}).make_plan()
        return round(computed_share(plan, sites[kind][0], schedule) * (schedule.num_steps or 0))

    lengths = {kind: {computed(kind, n): n for n in range(30, 0, -1)} for kind in kinds}
    wanted = sum(computed(kind, ranges[kind]) * len(sites[kind]) for kind in kinds)
    for chosen in itertools.product(*(lengths[kind].items() for kind in kinds)):
        found = dict(zip(kinds, chosen, strict=True))
        if sum(steps * len(sites[kind]) for kind, (steps, _) in found.items()) == wanted:
            yield {"ranges": {k: length for k, (_, length) in found.items()}, "window": window}


def fewest_bytes(described: Described, num_ranks: int) -> dict[str, Any]:
    """The plan of the fewest bytes that computes as much as PAB246."""
    schedule = assumed_schedule(parse_options({"ranges": "pab246"}).make_plan())
    program = described.program({"ranges": "pab246"}, 1)
    found = as_many_sites(program, schedule, "pab246")
    plans = {str(number): plan for number, plan in enumerate(found)}
    reports = pab_compile.least_traffic(
        described.video.build(1),
        **described.video.inputs,
        num_ranks=num_ranks,
        schedule=schedule,
        plans=plans,
    )
    return plans[next(iter(reports))]


def rows(video: Video) -> Iterator[str]:
    """The lines of one model's table."""
    described = Described(video)
    least = fewest_bytes(described, DEVICES[0])
    ranges = ", ".join(f"{kind} {num}" for kind, num in least["ranges"].items())
    plans: dict[str, dict[str, Any]] = {
        "no reuse": {"ranges": {}},
        "PAB246": {"ranges": "pab246"},
        "balanced": {"ranges": "linear3"},
        f"fewest bytes ({ranges})": least,
    }
    for num_ranks, (name, options) in itertools.product(DEVICES, plans.items()):
        try:
            found, report = described.figures(options, num_ranks)
        except (ShardingError, OptionError) as error:
            yield f"| {num_ranks} | {name} | - | {str(error).splitlines()[0]} | - | - | - |"
            continue
        computing = found.flops / MACHINE.flops_per_second
        exchanging = MACHINE.seconds(found.collectives, found.sent, num_ranks)
        share = exchanging / (computing + exchanging)
        yield (
            f"| {num_ranks} | {name} | {report.axis} | {found.sent / 1e9:.1f} "
            f"| {computing + exchanging:.1f} | {share:.1%} | {found.held / GIB:.1f} |"
        )


def published() -> Iterator[str]:
    """Bytes as the papers count them, for the setting that they publish, and what is possible."""
    import traffic

    found, blocks = traffic.describe(1), 28
    (program,) = look_at(found.model, (), found.inputs, parse_options(traffic.OPTIONS))
    plans = {_PUBLISHED: dict(traffic.OPTIONS)}
    for plan in as_many_sites(program, found.schedule, "open-sora"):
        ranges = ", ".join(f"{kind} {num}" for kind, num in plan["ranges"].items())
        plans[ranges] = {**plan, "cut": traffic.OPTIONS["cut"]}
    reports = pab_compile.least_traffic(
        found.model, plans=plans, num_ranks=8, schedule=found.schedule, **found.inputs
    )
    without = reports[_PUBLISHED].convention_bytes_without_reuse
    shown = [name for n, name in enumerate(reports) if n < SHOWN or name == _PUBLISHED]
    yield from ("| plan | axis | GB per device |", "|---|---|---|")
    yield f"| no reuse | {reports[_PUBLISHED].axis} | {blocks * without / 1e9:.3f} |"
    for name in shown:
        sent = blocks * reports[name].convention_bytes / 1e9
        yield f"| {name} | {reports[name].axis} | {sent:.3f} |"


def main(given: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args(given)
    warnings.simplefilter("ignore")
    text = ["# Many devices, predicted", ""]
    text += ["`python -m benchmarks.devices --write` makes this page. Its docstring says what is"]
    text += ["assumed. Nothing here was measured.", ""]
    console = Console()

    def say(line: str) -> None:
        text.append(line)
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    for video in (open_sora(), wan()):
        for line in ("", f"## {video.name}", "", *HEAD):
            say(line)
        for line in rows(video):
            say(line)
    title = "## Plans that compute as many sites as PAB246"
    about = "Open-Sora 1.2, 854x480, 51 frames, 8 devices. Bytes are counted as the papers do."
    for line in ("", title, "", about, ""):
        say(line)
    for line in published():
        say(line)
    if args.write:
        RESULTS.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
