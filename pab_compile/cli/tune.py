"""``pab tune``: find a plan for a pipeline, its sampler and its number of steps."""

from __future__ import annotations

import argparse
from pathlib import Path

from pab_compile.tuning.tune import tune

from . import source
from .exits import OK, UsageError
from .output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    source.add_steps(parser)
    cost = parser.add_mutually_exclusive_group(required=True)
    cost.add_argument("--computed", type=int, help="number of steps that compute")
    cost.add_argument("--speedup", type=float, help="steps / steps that compute, at least")
    parser.add_argument("--teacher", choices=("same", "converged"), default="same")
    parser.add_argument("--rounds", type=int, default=1, help="of the last fit")
    parser.add_argument("--resume", type=Path, help="file for what was found; goes on from there")
    parser.add_argument("-o", "--output", type=Path, default=Path("plan.json"), help="plan file")


def run(given: argparse.Namespace) -> int:
    """Tune, and write the plan file."""
    chosen = source.source_of(given)
    if len(chosen.prompts) < 3:
        raise UsageError(
            f"tune needs at least 3 prompts, 6 to 12 are usual; got {len(chosen.prompts)}. Give "
            "--prompts FILE with one per line, or prompts = [...] in the Python file."
        )
    tuned = tune(
        chosen.generate,
        chosen.prompts,
        model=chosen.target,
        num_steps=chosen.steps_of(given),
        computed=given.computed,
        speedup=given.speedup,
        teacher=given.teacher,
        rounds=given.rounds,
        resume=given.resume,
    )
    tuned.save(given.output)
    say(
        f"{tuned}\nwrote {given.output}", {"plan": str(given.output), **tuned.to_json()}, given.json
    )
    return OK
