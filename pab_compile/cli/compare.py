"""``pab compare``: seconds and quality of several plans, from real generations."""

from __future__ import annotations

import argparse
from pathlib import Path

from pab_compile.options import read_options
from pab_compile.plans.levels import LEVELS
from pab_compile.tuning.comparing import compare

from . import source
from .exits import OK
from .output import progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    parser.add_argument(
        "--plan",
        action="append",
        help="a level, a preset or a plan file; may be repeated (default: all levels)",
    )
    parser.add_argument("--options", default=None, help="other options of the backend, as JSON")
    source.add_steps(parser)
    parser.add_argument("-o", "--output", type=Path, help="also write a page with the results")


def run(given: argparse.Namespace) -> int:
    """Generate every prompt without reuse and with every plan."""
    chosen = source.source_of(given)
    found = compare(
        chosen.generate,
        chosen.prompts,
        given.plan or list(LEVELS),
        model=chosen.target,
        num_steps=chosen.steps_of(given),
        frames=chosen.frames_of,
        options=read_options(given.options),
        measures=chosen.measures,
        tell=progress,
    )
    content = {"source": chosen.name, **found.to_json(), "page": None}
    lines = [str(found)]
    if given.output is not None:
        title = f"{chosen.name}: {len(found.plans)} plans"
        found.to_html(given.output, title=title)
        content["page"] = str(given.output)
        lines.append(f"wrote {given.output}")
    say("\n".join(lines), content, given.json)
    return OK
