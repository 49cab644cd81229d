"""Plans on the command line: levels, presets, plan files, and options as JSON."""

from __future__ import annotations

import argparse
from typing import Any

from pab_compile.live.choose import choice_of
from pab_compile.live.enable import enable
from pab_compile.live.handle import Handle
from pab_compile.options import read_options
from pab_compile.plans.levels import DEFAULT, LEVELS, OFF
from pab_compile.plans.presets import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say how to compile."""
    group = parser.add_argument_group("how to compile")
    group.add_argument("--plan", help="a level, a preset or a plan file (default: balanced)")
    group.add_argument(
        "--options",
        default=None,
        help="other options of the backend: JSON text, or a JSON file, as in "
        '\'{"cache_budget": "8GiB"}\'',
    )


def enabled(target: Any, given: argparse.Namespace) -> Handle:
    """Compile what denoises, with the plan of the arguments."""
    handle = enable(target, **_compiling(given))
    if given.plan is not None:
        handle.set(given.plan)
    return handle


def _compiling(given: argparse.Namespace) -> dict[str, Any]:
    return read_options(given.options)


def options_of(plan: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """Options of the backend that do what a plan does as a level, a preset or a file."""
    name = plan or DEFAULT
    choice_of(name, given)  # refuses what is no plan
    if name in LEVELS or name in PRESETS:
        return {**given, "ranges": LEVELS.get(name, name)}
    return {**given, "ranges": {}} if name == OFF else {**given, "plan": name}
