"""Shows what broadcasting saves: the same videos in eight ways, at their speed and quality.

    python examples/demo.py
    python examples/demo.py --quick

Generates one video for each of the prompts 0 ... 9 with the small Latte of `examples/digits_latte`
and classifier-free guidance: eager, with stock `torch.compile`, with PAB as published, with the
preset `linear3`, with a third of the steps, the same with a sampler of second order, and with two
plans of `tune_digits.py`. Prints the plans, the times, the distance from eager's videos and what
was computed and reused, and writes a side-by-side GIF and MP4.

Times are medians over generations that alternate between the variants, after one warm-up each. The
compile time is what that first generation took beyond the median. A machine that is busy with
other work shows in all variants alike, though not to the same degree.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import digits
import film
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from solvers import AdamsBashforth
from stages import Stages

import pab_compile
from plans import TUNED, plans_of

EAGER, STOCK = "eager", "torch.compile"
FEWER = 3
"""Of so many steps, the rows with fewer steps take one."""
SAME_DB = 100.0
DURATION = "The demo takes about 3 minutes on 2 CPU cores. Most of it is compilation."
TIGHT: dict[str, Any] = {"pad_edge": False, "collapse_padding": True}


@dataclass
class Variant:
    """One way to run the model, and what was seen of it.

    Attributes:
        name: label in the table and in the film.
        model: what is called in place of the model.
        trained: the model with the sampler.
        num_steps: of a generation.
        start: called before a generation.
        is_broadcast: whether the model reuses, so that it has statistics.
        first_seconds: duration of the first generation, compilation included.
        seconds: durations of the generations after it.
        videos: the videos of the last generation.
        stats: `pab_compile.stats` of the last generation, where there are any.
    """

    name: str
    model: Callable[..., tuple[torch.Tensor, ...]]
    trained: digits.DigitsModel
    num_steps: int
    start: Callable[[], object] = lambda: None
    is_broadcast: bool = False
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    videos: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    stats: Any = None

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def compile_seconds(self) -> float:
        return max(0.0, self.first_seconds - self.median_seconds)


def make_variants(latte: digits.DigitsModel, num_steps: int) -> list[Variant]:
    """Wraps the model in the ways that are compared; nothing is compiled yet."""
    stock = torch.compile(latte.model)
    published = torch.compile(latte.model, backend="pab")
    enabled = copy.deepcopy(latte.model)  # it is compiled in place
    handle, few = pab_compile.enable(enabled, "linear3"), num_steps // FEWER
    second = replace(latte, scheduler=AdamsBashforth())
    live: dict[str, Any] = {"trained": latte, "num_steps": num_steps, "is_broadcast": True}
    tuned = {count: plans_of("latte")[f"tuned-{count}"]["plan"] for count in TUNED}
    return [
        Variant(EAGER, latte.model, latte, num_steps),
        Variant(STOCK, stock, latte, num_steps),
        Variant("PAB246", published, **live),
        Variant("linear3", enabled, **live, start=lambda: handle.set("linear3")),
        Variant(f"{few} steps, Euler", stock, latte, few),
        Variant(f"{few} steps, AB 2", stock, second, few),
        *(
            Variant(f"tuned, {count} calls", enabled, **live, start=lambda p=p: handle.set(p))
            for count, p in tuned.items()
        ),
    ]


def run(variants: list[Variant], args: argparse.Namespace, stages: Stages) -> None:
    """Generates once with each variant to compile, then in `args.rounds` alternating rounds."""
    prompts = torch.arange(args.videos) % digits.NUM_DIGITS
    noise = digits.make_noise(args.videos, seed=args.seed)

    def generate(variant: Variant, label: str) -> float:
        variant.start()
        with stages.stage(f"{label}: {variant.name}", variant.num_steps) as advance:
            start = time.perf_counter()
            variant.videos = digits.generate(
                variant.trained,
                prompts,
                noise,
                model=variant.model,
                num_steps=variant.num_steps,
                guidance=args.guidance,
                on_step=advance,
            )
            seconds = time.perf_counter() - start
        if variant.is_broadcast:
            variant.stats = pab_compile.stats(variant.model)
        return seconds

    for variant in variants:
        variant.first_seconds = generate(variant, "first generation")
    for turn in range(args.rounds):
        for variant in variants:
            variant.seconds.append(generate(variant, f"round {turn + 1} of {args.rounds}"))


def compare(videos: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Returns mean PSNR in dB and mean SSIM of the frames; PSNR is capped at 100 dB per video."""
    ours, theirs = (((v + 1) / 2).squeeze(1).numpy() for v in (videos, reference))
    psnr, ssim = [], []
    for a, b in zip(ours, theirs, strict=True):
        same = float(np.square(a - b).mean()) < 10 ** (-SAME_DB / 10)
        psnr.append(SAME_DB if same else peak_signal_noise_ratio(b, a, data_range=1.0))
        ssim += [structural_similarity(q, p, data_range=1.0) for p, q in zip(a, b, strict=True)]
    return statistics.fmean(psnr), statistics.fmean(ssim)


def summarize(variants: list[Variant], reader: digits.Reader) -> list[dict[str, Any]]:
    """Returns one record per variant."""
    eager, stock = variants[0], variants[1]
    prompts = torch.arange(len(eager.videos)) % digits.NUM_DIGITS
    records = []
    for variant in variants:
        psnr, ssim = compare(variant.videos, eager.videos)
        records.append(
            {
                "variant": variant.name,
                "seconds_per_video": variant.median_seconds / len(prompts),
                "speedup_over_eager": eager.median_seconds / variant.median_seconds,
                "speedup_over_compile": stock.median_seconds / variant.median_seconds,
                "compile_seconds": variant.compile_seconds if variant is not eager else None,
                "psnr_db": psnr,
                "ssim": ssim,
                "read_correctly": int((reader.read(variant.videos) == prompts).sum()),
                "computed": dict(variant.stats.computed) if variant.stats else None,
                "reused": dict(variant.stats.reused) if variant.stats else None,
                "peak_cache_bytes": variant.stats.peak_cache_bytes if variant.stats else None,
                "generation_seconds": variant.seconds,
            }
        )
    return records


def make_time_table(records: list[dict[str, Any]], num_videos: int) -> Table:
    """Lays out times, speed-ups over eager and stock compile, and distances from eager."""
    table = Table(title="speed and distance from eager", box=box.SIMPLE, **TIGHT)
    headers = ("s/video", "/eager", "/compile", "compile s", "PSNR dB", "SSIM", "read")
    table.add_column("variant", no_wrap=True)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for record in records:
        first, psnr = record["compile_seconds"], record["psnr_db"]
        is_eager = record["variant"] == EAGER
        table.add_row(
            record["variant"],
            f"{record['seconds_per_video']:.3f}",
            f"{record['speedup_over_eager']:.2f}x",
            f"{record['speedup_over_compile']:.2f}x",
            "-" if first is None else f"{first:.1f}",
            "-" if is_eager else f">={SAME_DB:.0f}" if psnr >= SAME_DB else f"{psnr:.1f}",
            "-" if is_eager else f"{record['ssim']:.4f}",
            f"{record['read_correctly']}/{num_videos}",
        )
    return table


def make_reuse_table(records: list[dict[str, Any]]) -> Table:
    """Lays out how many site values were computed and reused in one generation, by kind."""
    records = [record for record in records if record["computed"] is not None]
    kinds = sorted({kind for r in records for kind in (*r["computed"], *r["reused"])})
    table = Table(title="computed + reused site values, by kind", box=box.SIMPLE, **TIGHT)
    table.add_column("variant", no_wrap=True)
    for kind in (*kinds, "peak cache"):
        table.add_column(kind, justify="right", no_wrap=True)
    for record in records:
        counts = [(record["computed"].get(k, 0), record["reused"].get(k, 0)) for k in kinds]
        cells = [f"{ours} + {theirs}" if ours + theirs else "-" for ours, theirs in counts]
        table.add_row(record["variant"], *cells, f"{record['peak_cache_bytes'] / 2**20:.1f} MiB")
    return table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=30, help="the tuned plans are for 30")
    parser.add_argument("--videos", type=int, default=10, help="videos, generated in one batch")
    parser.add_argument("--rounds", type=int, default=3, help="timed generations per variant")
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--quick", action="store_true", help="4 videos, 1 round")
    parser.add_argument("--model", type=Path, default=digits.MODEL_DIR)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="folder for the films")
    args = parser.parse_args()
    if args.quick:
        args.videos, args.rounds = 4, 1
    return args


def film_label(record: dict[str, Any]) -> str:
    """Returns the film's label of a variant: its name, and its distance from eager."""
    name = record["variant"].replace(", ", "\n")
    return name if name == STOCK else f"{name}\n{record['psnr_db']:.1f} dB"


def write(
    variants: list[Variant], records: list[dict[str, Any]], args: argparse.Namespace
) -> list[Path]:
    """Writes the films and the records; returns the files."""
    args.out.mkdir(parents=True, exist_ok=True)
    gif, mp4, table = (args.out / f"demo.{ending}" for ending in ("gif", "mp4", "json"))
    rows = [str(video % digits.NUM_DIGITS) for video in range(args.videos)]
    pairs = zip(records[1:], variants[1:], strict=True)  # stock torch.compile looks as eager does
    videos = {film_label(record): variant.videos for record, variant in pairs}
    frames = film.side_by_side(videos, rows)
    film.write_gif(gif, frames)
    film.write_mp4(mp4, frames)
    table.write_text(json.dumps(records, indent=1) + "\n")
    return [gif, mp4, table]


def main() -> None:
    args, console = parse_args(), Console()
    if args.threads:
        torch.set_num_threads(args.threads)
    console.print(DURATION, highlight=False, soft_wrap=True)
    shown: dict[str, dict[str, Any]] = {
        "PAB246": {},
        "tuned": plans_of("latte")[f"tuned-{TUNED[0]}"],
    }
    with Stages(console, 3 + len(shown) + (6 + len(TUNED)) * (1 + args.rounds)) as stages:
        with stages.stage("load the model, train the reader"):
            latte, reader = digits.load(args.model), digits.train_reader()
        for name, options in shown.items():
            with torch.no_grad(), stages.stage(f"explain {name}"):
                inputs = latte.example_inputs(args.videos)
                explanation = pab_compile.explain(latte.model, options=options, **inputs)
            console.print(f"[bold]{name}[/bold]")
            console.print(str(explanation), markup=False, highlight=False, soft_wrap=True)
        variants = make_variants(latte, args.steps)
        run(variants, args, stages)
        with stages.stage("compare the videos"):
            records = summarize(variants, reader)
        with stages.stage("write the films"):
            files = write(variants, records, args)
    console.print(make_time_table(records, args.videos))
    console.print(make_reuse_table(records))
    console.print(
        f"{args.videos} videos in one batch, {args.steps} steps, guidance {args.guidance:g}, "
        f"{torch.get_num_threads()} threads; medians of {args.rounds} alternating generations. "
        f"The reader reads {reader.held_out_accuracy:.1%} of clean held-out videos.",
        highlight=False,
    )
    console.print(f"wrote {', '.join(map(str, files))}")


if __name__ == "__main__":
    main()
