"""``pab explain``: what is found in the model, and what a plan does with it."""

from __future__ import annotations

import argparse
import json
import warnings

from pab_compile.inspect.explain import explain
from pab_compile.report.explanation import Explanation

from . import plans, source
from .exits import OK
from .output import progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    source.add_arguments(parser)
    plans.add_arguments(parser)
    parser.add_argument(
        "--steps", type=source.at_least_one, default=2, help="of the generation that is looked at"
    )


def run(given: argparse.Namespace) -> int:
    """Explain the model: from its ``inputs()``, or from a short generation without kernels."""
    found = explanations(source.source_of(given), given)
    text = "\n\n".join(
        f"{role}: {one}" if len(found) > 1 else str(one) for role, one in found.items()
    )
    say(text, {role: json.loads(one.to_json()) for role, one in found.items()}, given.json)
    return OK


def explanations(chosen: source.Source, given: argparse.Namespace) -> dict[str, Explanation]:
    """What is found in each module that denoises, by its role."""
    if chosen.inputs is not None:
        part = chosen.part()
        return {"model": explain(part, options=_options(given), **chosen.inputs(part))}
    given.options = {**plans.read_options(given.options), "inner": "eager"}
    handle = plans.enabled(chosen.target, given)
    progress(f"running {given.steps} steps")
    with warnings.catch_warnings():
        # A level says that so few steps are too few for it. Nothing need be reused here.
        warnings.filterwarnings("ignore", message=".* reuses nothing in a generation of ")
        chosen.generate(chosen.prompts[0], given.steps)
    return handle.explain()


def _options(given: argparse.Namespace) -> dict[str, object]:
    """The options of the backend for a plan."""
    return plans.options_of(given.plan, plans.read_options(given.options))
