"""``pab report``: run a generation with a plan, and write a page about it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from pab_compile.live.handle import Handle
from pab_compile.report.run_stats import RunStats
from pab_compile.tuning.score import psnr

from . import plans, source
from .exits import OK
from .files import write_text
from .output import progress, say
from .timing import timed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    plans.add_arguments(parser)
    parser.add_argument("--steps", type=int, default=30, help="of a generation")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    parser.add_argument(
        "--baseline", action="store_true", help="also run without reuse, for speed and quality"
    )


def run(given: argparse.Namespace) -> int:
    """Generate, and write one page per module that denoises."""
    chosen = source.source_of(given)
    handle = plans.enabled(chosen.target, given)
    prompt = chosen.prompts[0]

    def generate() -> Any:
        return chosen.generate(prompt, given.steps)

    progress("the first generation, which compiles")
    generate()
    progress("the second generation")
    result, seconds = timed(generate)
    found = handle.stats()
    speed, quality = None, ""
    if given.baseline:
        speed, quality = _against_baseline(handle, generate, result, seconds)
    pages = _write(found, chosen.name, handle.plan, given.output, speed, quality)
    content = {
        "pages": pages,
        "seconds": seconds,
        "speed": speed,
        "quality": quality,
        "stats": {role: one.to_json() for role, one in found.items()},
    }
    text = "\n".join([*(str(one) for one in found.values()), *(f"wrote {p}" for p in pages)])
    say(text, content, given.json)
    return OK


def _against_baseline(
    handle: Handle, generate: Any, result: Any, seconds: float
) -> tuple[float, str]:
    """The speed and the quality, relative to stock ``torch.compile``."""
    with handle.disabled(exact=True):
        progress("without reuse: the first generation, which compiles")
        generate()
        progress("without reuse: the second generation")
        reference, without = timed(generate)
    quality = ""
    if isinstance(result, torch.Tensor) and isinstance(reference, torch.Tensor):
        quality = f"{psnr(result.float(), reference.float()):.1f} dB PSNR"
    return without / seconds, quality


def _write(
    found: dict[str, RunStats], name: str, plan: str, output: Path, speed: Any, quality: str
) -> list[str]:
    pages = []
    for role, stats in found.items():
        path = output if len(found) == 1 else output.with_stem(f"{output.stem}-{role}")
        title = f"{name}: {plan}" if len(found) == 1 else f"{name}, {role}: {plan}"
        write_text(path, stats.to_html(title=title, speed=speed, quality=quality))
        pages.append(str(path))
    return pages
