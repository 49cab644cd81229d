"""``pab compare``: seconds and quality of several plans, from real generations."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pab_compile.live.enable import enable
from pab_compile.options import read_options
from pab_compile.report.draw import format_bytes
from pab_compile.report.table import table_lines
from pab_compile.tuning.score import Score, psnr

from . import source
from .exits import OK
from .output import progress, say
from .timing import timed


@dataclass(frozen=True)
class Compared:
    """One plan.

    Attributes:
        plan: its name.
        seconds: median seconds of a generation, without the first one.
        speed: seconds without reuse / seconds.
        psnr: mean over the prompts in dB, relative to no reuse; None if results are no tensors.
        psnr_half_width: of its 95 % interval; None for one prompt.
        reused: the share of all runs of sites that reused.
        cache_bytes: most bytes in caches.
    """

    plan: str
    seconds: float
    speed: float
    psnr: float | None
    psnr_half_width: float | None
    reused: float
    cache_bytes: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    parser.add_argument(
        "--plan",
        action="append",
        help="a level, a preset or a plan file; may be repeated (default: all levels)",
    )
    parser.add_argument("--options", default=None, help="other options of the backend, as JSON")
    parser.add_argument("--steps", type=int, default=30, help="of a generation")


def run(given: argparse.Namespace) -> int:
    """Generate every prompt without reuse and with every plan."""
    chosen = source.source_of(given)
    handle = enable(chosen.target, **read_options(given.options))
    names = given.plan or ["quality", "balanced", "fast", "ultra"]
    for name in names:
        handle.set(name)  # a wrong name is an error before anything runs
    with handle.disabled(exact=True):
        progress("without reuse")
        references, without = _results(chosen, given.steps)
    rows = []
    for name in names:
        progress(f"plan {name}")
        handle.set(name)
        results, seconds = _results(chosen, given.steps)
        stats = handle.stats().values()
        score = _score(results, references)
        rows.append(
            Compared(
                plan=name,
                seconds=seconds,
                speed=without / seconds,
                psnr=None if score is None else score.mean,
                psnr_half_width=score.half_width
                if score is not None and len(results) > 1
                else None,
                reused=statistics.fmean(one.reused_share for one in stats),
                cache_bytes=sum(one.peak_cache_bytes for one in stats),
            )
        )
    content = {
        "source": chosen.name,
        "steps": given.steps,
        "prompts": len(chosen.prompts),
        "seconds_without_reuse": without,
        "plans": [asdict(row) for row in rows],
    }
    say("\n".join(_lines(rows, without, len(chosen.prompts), given.steps)), content, given.json)
    return OK


def _results(chosen: source.Source, num_steps: int) -> tuple[list[Any], float]:
    """The result of every prompt, and the median seconds. The first run compiles."""
    chosen.generate(chosen.prompts[0], num_steps)
    runs = [timed(lambda p=prompt: chosen.generate(p, num_steps)) for prompt in chosen.prompts]
    return [result for result, _ in runs], statistics.median(seconds for _, seconds in runs)


def _score(results: Sequence[Any], references: Sequence[Any]) -> Score | None:
    if not all(isinstance(one, torch.Tensor) for one in (*results, *references)):
        return None
    pairs = zip(results, references, strict=True)
    return Score.of([psnr(one.float(), other.float()) for one, other in pairs])


def _lines(rows: Sequence[Compared], without: float, prompts: int, steps: int) -> list[str]:
    table = [("without reuse", f"{without:.3g}", "1.00", "-", "0%", "-")]
    for row in rows:
        width = "" if row.psnr_half_width is None else f" ± {row.psnr_half_width:.1f}"
        table.append(
            (
                row.plan,
                f"{row.seconds:.3g}",
                f"{row.speed:.2f}",
                "-" if row.psnr is None else f"{row.psnr:.1f}{width}",
                f"{row.reused:.0%}",
                format_bytes(row.cache_bytes),
            )
        )
    headings = ("plan", "seconds", "speed", "PSNR, dB", "reused", "caches")
    return [
        f"{prompts} prompts, {steps} steps. PSNR and speed are relative to no reuse.",
        *table_lines(headings, table, num_left=1, width=80),
    ]
