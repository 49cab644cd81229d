"""``pab precompile``: compile before the first request, and save what was compiled."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from pab_compile.compile.saved import save_compiled
from pab_compile.live.precompile import precompile
from pab_compile.report.draw import format_bytes

from . import plans, source
from .exits import OK
from .output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    plans.add_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="also save what was compiled to this file (pab_compile.load_compiled)",
    )


def run(given: argparse.Namespace) -> int:
    """Compile for the sizes of all prompts. The pieces stay in Inductor's cache on disk."""
    chosen = source.source_of(given)
    handle = plans.enabled(chosen.target, given)
    start = time.perf_counter()
    calls = [lambda p=prompt: chosen.generate(p, 2) for prompt in chosen.prompts]
    precompile(handle, calls)
    seconds = time.perf_counter() - start
    content: dict[str, object] = {"seconds": seconds, "calls": len(calls), "saved": None}
    text = f"compiled in {seconds:.1f} s, for {len(calls)} calls"
    if given.output is not None:
        saved = save_compiled(given.output)
        content |= {"saved": str(given.output), "traces": saved.num_traces}
        content["artifact_bytes"] = saved.artifact_bytes
        text += f"; wrote {given.output}: {saved.num_traces} graphs, and torch's artifacts with "
        text += format_bytes(saved.artifact_bytes)
    say(text, content, given.json)
    return OK
