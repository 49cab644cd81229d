"""``pab report``: run a generation with a plan, and write a page about it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pab_compile.calibration.observe import observe
from pab_compile.live.handle import Handle
from pab_compile.report.run_stats import RunStats
from pab_compile.report.text import wrapped
from pab_compile.tuning.score import psnr
from pab_compile.tuning.ssim import ssim_of_shown
from pab_compile.tuning.timing import timed

from . import plans, source
from .exits import OK
from .output import progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    plans.add_arguments(parser)
    source.add_steps(parser)
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="the page")
    parser.add_argument(
        "--baseline", action="store_true", help="also run without reuse, for speed and quality"
    )
    parser.add_argument(
        "--curves", action="store_true", help="also observe how outputs change from step to step"
    )


def run(given: argparse.Namespace) -> int:
    """Generate, and write one page per module that denoises."""
    chosen = source.source_of(given)
    handle = plans.enabled(chosen.target, given)
    prompt, steps = chosen.prompts[0], chosen.steps_of(given)

    def generate() -> Any:
        return chosen.generate(prompt, steps)

    progress("the first generation, which compiles")
    generate()
    progress("the second generation")
    result, seconds = timed(generate)
    found = handle.stats()
    videos: dict[str, Any] = {}
    speed, quality = None, ""
    if given.baseline:
        reference, speed, quality = _against_baseline(chosen, handle, generate, result, seconds)
        videos["without reuse"] = chosen.frames_of(reference)
    videos[handle.plan] = chosen.frames_of(result)
    shown = {name: video for name, video in videos.items() if video is not None}
    curves = _curves(handle, generate) if given.curves else {}
    measured = {"speed": speed, "quality": quality, "videos": shown}
    pages = _write(found, chosen.name, handle.plan, given.output, curves, measured)
    content = {
        "pages": pages,
        "seconds": seconds,
        "speed": speed,
        "quality": quality,
        "curves": curves,
        "stats": {role: one.to_json() for role, one in found.items()},
    }
    lines = [str(one) if len(found) == 1 else f"{role}:\n{one}" for role, one in found.items()]
    lines += [*beside_baseline(speed, quality), *(f"wrote {page}" for page in pages)]
    say("\n".join(lines), content, given.json)
    return OK


def beside_baseline(speed: float | None, quality: str) -> list[str]:
    """What was measured beside no reuse, as lines."""
    if speed is None:
        return []
    near = f"; {quality} between the results" if quality else ""
    return wrapped(f"beside stock torch.compile: {speed:.2f}x as fast{near}")


def _against_baseline(
    chosen: source.Source, handle: Handle, generate: Any, result: Any, seconds: float
) -> tuple[Any, float, str]:
    """The result, the speed and the quality, relative to stock ``torch.compile``."""
    with handle.disabled(exact=True):
        progress("without reuse: the first generation, which compiles")
        generate()
        progress("without reuse: the second generation")
        reference, without = timed(generate)
    quality = ""
    if isinstance(result, torch.Tensor) and isinstance(reference, torch.Tensor):
        quality = f"{psnr(result.float(), reference.float()):.1f} dB PSNR"
        similar = ssim_of_shown(chosen.frames_of, result, reference)
        quality += "" if similar is None else f", SSIM {similar:.4f}"
    return reference, without / seconds, quality


def _curves(handle: Handle, generate: Any) -> dict[str, dict[str, list[float | None]]]:
    """How the outputs of each module change from step to step, by kind. NaN is None."""
    found = {}
    for role, module in zip(handle.modules, handle.compiled(), strict=True):
        progress(f"how the outputs of {role} change, without reuse")
        curves = observe(generate, model=module).curves()
        found[role] = {
            kind: [value if value == value else None for value in curve]
            for kind, curve in curves.items()
        }
    return found


def _write(
    found: dict[str, RunStats],
    name: str,
    plan: str,
    output: Path,
    curves: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> list[str]:
    pages = []
    for role, stats in found.items():
        path = output if len(found) == 1 else output.with_stem(f"{output.stem}-{role}")
        title = f"{name}: {plan}" if len(found) == 1 else f"{name}, {role}: {plan}"
        stats.to_html(path, title=title, curves=curves.get(role), **measured)
        pages.append(str(path))
    return pages
