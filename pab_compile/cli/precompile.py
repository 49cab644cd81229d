"""``pab precompile``: compile before the first request, and save what was compiled."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from pab_compile.live.precompile import precompile

from . import plans, source
from .exits import OK
from .files import write_bytes
from .output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    plans.add_arguments(parser)
    parser.add_argument(
        "-o", "--output", type=Path, help="save torch's cache artifacts to this file too"
    )


def run(given: argparse.Namespace) -> int:
    """Compile for the sizes of all prompts. The pieces stay in Inductor's cache on disk."""
    chosen = source.source_of(given)
    handle = plans.enabled(chosen.target, given)
    start = time.perf_counter()
    calls = [lambda p=prompt: chosen.generate(p, 2) for prompt in chosen.prompts]
    precompile(handle, calls)
    seconds = time.perf_counter() - start
    content: dict[str, object] = {"seconds": seconds, "calls": len(calls), "artifacts": None}
    text = f"compiled in {seconds:.1f} s, for {len(calls)} calls"
    if given.output is not None:
        saved = torch.compiler.save_cache_artifacts()
        if saved is None:
            text += "; torch had nothing to save: everything came from its cache on disk"
        else:
            write_bytes(given.output, saved[0])
            content["artifacts"] = str(given.output)
            text += f"; wrote {given.output} ({len(saved[0])} bytes)"
    say(text, content, given.json)
    return OK
