"""Every DiT on two processes that share its tokens: ``python -m dits.ranks [NAME ...]``.

Run it in ``tests``. ``--write`` writes ``benchmarks/results/rank_coverage.md``.
"""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path

from rich.console import Console
from rich.progress import track

from helpers.rank_coverage import ALL_TYPES, BOUNDS, NUM_RANKS, PLANS, Exchanged, Shared, measure
from helpers.world import World

from .catalogue import CATALOGUE
from .in_types import TYPES
from .spec import Dit

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "rank_coverage.md"
HEAD = """# Every DiT on two processes

`python -m dits.ranks --write` in `tests` makes this table. Two processes over gloo share the tokens
of every DiT of `tests/dits`. They run ten steps with PAB246 and ten with `linear3`. The columns
mean:

- *axis*: what the processes share.
- *difference*: the largest one to the outputs of one process, as a share of the largest output.
- *collectives*: how many ran in the ten steps. *MB*: what the first process sent in them.
- *foretold*: whether `comm` predicted both numbers.

"""
COLUMNS = ("model", "type", "plan", "axis", "difference", "collectives", "MB", "foretold")


def main() -> int:
    """Print the table; the exit status is the number of rows that are not as they should be."""
    parser = argparse.ArgumentParser(prog="python -m dits.ranks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all unless given")
    parser.add_argument("--types", nargs="*", default=list(TYPES), choices=list(ALL_TYPES))
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    args = parser.parse_args()
    console = Console()
    warnings.simplefilter("ignore")
    lines: dict[str, list[str]] = _lines_before() if args.names else {}
    world, failed = World(NUM_RANKS), 0
    try:
        for name in track(args.names or list(CATALOGUE), "models", console=console):
            found = {kind: _measured(world, CATALOGUE[name], kind) for kind in args.types}
            lines[name] = _lines(name, found)
            failed += sum(
                not is_right(kind, each) for kind in found for each in found[kind].values()
            )
            for line in lines[name]:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            if args.write:  # after every model: a run that is broken off leaves what it found
                RESULTS.write_text(_text(lines))
    finally:
        world.close()
    return failed


def is_right(type_name: str, found: Shared) -> bool:
    """Whether ranks equal one process and exchange what was foretold, or refuse and so does it."""
    if found.refusal:
        return found.foretold is None and not found.refusal.startswith("only rank 0")
    return found.difference < BOUNDS[type_name] and found.exchanged == found.foretold


def _measured(world: World, dit: Dit, type_name: str) -> dict[str, Shared]:
    if dit.dtype not in (ALL_TYPES[type_name], TYPES["float32"]):
        return {}
    try:
        return measure(world, dit.name, type_name)
    except AssertionError as error:  # not an error of the library
        world.begin_anew(NUM_RANKS)
        last = str(error).strip().splitlines()[-1]
        return {plan: Shared(refusal=f"failed: {last}") for plan in PLANS}


def _lines(name: str, found: dict[str, dict[str, Shared]]) -> list[str]:
    every = [shared for plans in found.values() for shared in plans.values()]
    refusals = {shared.refusal for shared in every}
    if len(refusals) == 1 and all(shared.refusal for shared in every):
        return [_line(name, "all", "both", "refused", short(every[0].refusal), "", "", "")]
    return [
        _row(name, type_name, plan, shared)
        for type_name, plans in found.items()
        for plan, shared in plans.items()
    ]


def _row(name: str, type_name: str, plan: str, found: Shared) -> str:
    if found.refusal:
        told = "" if found.foretold is None else "`comm` does not refuse it"
        return _line(name, type_name, plan, "refused", short(found.refusal), "", "", told)
    assert found.exchanged is not None
    told = "yes" if found.exchanged == found.foretold else f"no: {_words(found.foretold)}"
    cells = (str(found.exchanged.collectives), f"{found.exchanged.num_bytes / 1e6:.3f}")
    return _line(name, type_name, plan, found.axis, f"{found.difference:.1e}", *cells, told)


def _words(exchanged: Exchanged | None) -> str:
    if exchanged is None:
        return "refused"
    return f"{exchanged.collectives}, {exchanged.num_bytes / 1e6:.3f} MB"


def short(refusal: str) -> str:
    """A refusal for a cell, without places in the source."""
    bare = re.sub(r" \([^()]*\.py:\d+[^()]*\)", "", refusal.replace("\n", " "))
    return bare.replace("|", "/")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _text(lines: dict[str, list[str]]) -> str:
    rows = [line for name in CATALOGUE for line in lines.get(name, ())]
    table = "\n".join([_line(*COLUMNS), "|---" * len(COLUMNS) + "|", *rows])
    return f"{HEAD}{_summary(lines)}\n\n{table}\n"


def _summary(lines: dict[str, list[str]]) -> str:
    """How many models are shared and refused, and which were not run."""
    refused = [name for name in lines if all("| refused |" in line for line in lines[name])]
    every = [line.split(" | ") for each in lines.values() for line in each]
    shared = [cells for cells in every if cells[3] != "refused"]
    worst = max((float(cells[4]) for cells in shared), default=0.0)
    told = sum(cells[7].startswith("yes") for cells in shared)
    found = (
        f"{len(lines) - len(refused)} of {len(lines)} models are shared. "
        f"Refused: {', '.join(refused) or 'none'}.\nThe largest difference is {worst:.1e}. "
        f"`comm` foretold {told} of {len(shared)} rows."
    )
    reasons = [f"- {name}: {CATALOGUE[name].notes}." for name in refused]
    if reasons:
        found = "\n".join((f"{found}\n\nNo rule of ranks lifts these refusals:\n", *reasons, ""))
    left = [name for name in CATALOGUE if name not in lines]
    return f"{found}\nNot run: {', '.join(left)}." if left else found


def _lines_before() -> dict[str, list[str]]:
    """The rows of the file by model."""
    found: dict[str, list[str]] = {}
    for line in RESULTS.read_text().splitlines() if RESULTS.exists() else ():
        if line.startswith("| ") and not line.startswith("| model"):
            found.setdefault(line.split(" | ")[0].removeprefix("| "), []).append(line)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
