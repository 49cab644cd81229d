"""``pab compare``: seconds and quality of several plans, from real generations."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pab_compile.live.enable import enable
from pab_compile.options import read_options
from pab_compile.report.compare_page import Compared, columns, compare_page
from pab_compile.report.table import table_lines
from pab_compile.tuning.score import Score, psnr

from . import source
from .exits import OK
from .files import write_text
from .output import progress, say
from .ssim import ssim_of_shown
from .timing import timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    parser.add_argument(
        "--plan",
        action="append",
        help="a level, a preset or a plan file; may be repeated (default: all levels)",
    )
    parser.add_argument("--options", default=None, help="other options of the backend, as JSON")
    parser.add_argument("--steps", type=source.at_least_one, default=30, help="of a generation")
    parser.add_argument("-o", "--output", type=Path, help="also write a page with the results")


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
    rows, videos = [], _videos(chosen, "without reuse", references, given)
    for name in names:
        progress(f"plan {name}")
        handle.set(name)
        results, seconds = _results(chosen, given.steps)
        stats = list(handle.stats().values())
        score, similar = _score(chosen, results, references)
        rows.append(
            Compared(
                plan=name,
                seconds=seconds,
                speed=without / seconds,
                psnr=None if score is None else score.mean,
                psnr_half_width=score.half_width
                if score is not None and len(results) > 1
                else None,
                ssim=similar,
                reused=statistics.fmean(one.reused_share for one in stats),
                cache_bytes=sum(one.peak_cache_bytes for one in stats),
                options=dict(stats[0].options),
            )
        )
        videos |= _videos(chosen, name, results, given)
    content = {
        "source": chosen.name,
        "steps": given.steps,
        "prompts": len(chosen.prompts),
        "seconds_without_reuse": without,
        "plans": [asdict(row) for row in rows],
        "page": None if given.output is None else str(given.output),
    }
    said = (
        f"{len(chosen.prompts)} prompts, {given.steps} steps. PSNR, SSIM and speed are relative to "
        "no reuse."
    )
    lines = [said, *_lines(rows, without)]
    if given.output is not None:
        title = f"{chosen.name}: {len(rows)} plans"
        write_text(given.output, compare_page(title, said, without, rows, videos, content))
        lines.append(f"wrote {given.output}")
    say("\n".join(lines), content, given.json)
    return OK


def _results(chosen: source.Source, num_steps: int) -> tuple[list[Any], float]:
    """The result of every prompt, and the median seconds. The first run compiles."""
    chosen.generate(chosen.prompts[0], num_steps)
    runs = [timed(lambda p=prompt: chosen.generate(p, num_steps)) for prompt in chosen.prompts]
    return [result for result, _ in runs], statistics.median(seconds for _, seconds in runs)


def _videos(
    chosen: source.Source, name: str, results: Sequence[Any], given: argparse.Namespace
) -> dict[str, Any]:
    """The frames of the first prompt, for the page."""
    frames = None if given.output is None else chosen.frames_of(results[0])
    return {} if frames is None else {name: frames}


def _score(
    chosen: source.Source, results: Sequence[Any], references: Sequence[Any]
) -> tuple[Score | None, float | None]:
    """PSNR and SSIM, as far as the results are tensors, and pictures."""
    if not all(isinstance(one, torch.Tensor) for one in (*results, *references)):
        return None, None
    pairs = list(zip(results, references, strict=True))
    similar = [value for a, b in pairs if (value := ssim_of_shown(chosen, a, b)) is not None]
    score = Score.of([psnr(a.float(), b.float()) for a, b in pairs])
    return score, statistics.fmean(similar) if similar else None


def _lines(rows: Sequence[Compared], without: float) -> list[str]:
    headings, table = columns(without, rows)
    return table_lines(headings, table, num_left=1, width=80)
