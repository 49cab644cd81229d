"""The table of all DiTs: ``python -m tests.dits [NAME ...] [--write docs/models.md]``.

Checks everything there is to check about every model (or those named) and prints one row for each:
what was found against what really runs, whether the forward is one graph, whether nothing is
changed without reuse and reuse equals module hooks, and the same at a second resolution. Rows that
are already in the file that is written are kept for models that are not named. What a reuse step
computes comes from the file that ``benchmarks.reuse_cost`` writes; ``--no-checks`` updates that
only.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

import pab_compile
from pab_compile.passes.errors import PabError

from . import costs
from .build import Denoising, build, run
from .catalogue import CATALOGUE, NO_DITS
from .oracle import RANGES, WINDOW, Oracle
from .spec import Dit
from .truth import observe, true_counts

NUM_STEPS = 10
_UNKNOWN = "not examined yet"
_NUM_CHECKED = 8  # columns before the figures
HEAD = """# Models

`python -m tests.dits --write docs/models.md` makes this table. It contains every DiT class of the
installed diffusers, with random weights at a tiny size. The columns mean:

- *attention*: what really runs, by module hooks and a spy on `scaled_dot_product_attention`.
- *found*: whether the compiler finds the same.
- *graphs*: how many graphs Dynamo makes of a forward. Where it is 1, everything runs with
  `fullgraph=True`.
- *ranges 1*: whether a compiled model that reuses nothing equals eager, bit for bit.
- *reuse*: whether ten steps equal module hooks that cache the outputs of the attention modules.
  `full`, `joint` and `spatial` attention compute at every second step, `temporal` and `cross` at
  every third.
- *second size*: the same again at another resolution, with the same compiled model.

- *a reuse step*: what a step that reuses all sites of `linear3` computes, as a share of a full
  step. *of its blocks*: what it computes in the blocks, as a share of what a full step computes
  there. `python -m benchmarks.reuse_cost --write` counts the operations. Its page [reuse cost] also
  says what is kept in memory, and what is outside of the blocks.

*refused* means that the model is an error; the notes say why. The error offers `"cut": "output"`,
with which each of them runs (`tests/dits/test_refused.py`). With `on_unsupported="passthrough"` it
computes at every step. A dash means that nothing was counted: the model is refused, or it does not
take this type.

All models are tiny here. [Real sizes] says the same of models at the size that people run.

[reuse cost]: https://github.com/pab-compile/pab_compile/blob/main/benchmarks/results/reuse_cost.md
[Real sizes]: https://github.com/pab-compile/pab_compile/blob/main/benchmarks/results/real_sizes.md

"""
COLUMNS = (
    *("configuration", "class", "attention", "found", "graphs", "ranges 1", "reuse", "second size"),
    *costs.COLUMNS,
    "notes",
)


def main(arguments: Sequence[str]) -> int:
    """Print the table; the exit status is the number of models that are not as described."""
    parser = argparse.ArgumentParser(prog="python -m tests.dits", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all unless given")
    parser.add_argument("--write", type=Path, help="file to write the table to")
    parser.add_argument("--no-checks", action="store_true", help="update the figures only")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = _rows_of(options.write) if options.write and options.write.exists() else {}
    failed = 0
    names = [] if options.no_checks else options.names or list(CATALOGUE)
    if options.no_checks and options.write:
        options.write.write_text(HEAD + _table(rows) + _exceptions())
    for name in track(names, description="models"):
        with CATALOGUE[name].switched():
            cells, as_described = examine(CATALOGUE[name])
        rows[name] = cells
        failed += not as_described
        print(_line(cells), flush=True)
        if options.write:  # after every row: a run that is broken off leaves what it found
            options.write.write_text(HEAD + _table(rows) + _exceptions())
    return failed


def examine(dit: Dit) -> tuple[list[str], bool]:
    """The cells of a model's row, and whether everything is as it should be."""
    model = build(dit)
    truth = true_counts(observe(model, dit, **dit.inputs()), dit)
    counts = ", ".join(f"{number} {kind}" for kind, number in truth.items())
    start = [dit.name, f"`{dit.cls}`", counts]
    if dit.unsupported:
        refusal = _outcome(lambda: pab_compile.explain(model, **_explained(dit)))
        refused = refusal.startswith(dit.unsupported)
        end = ["refused" if refused else refusal, str(dit.graphs), "-", "-", "-"]
        notes = "; ".join(filter(None, (dit.notes, dit.unsupported)))
        return [*start, *end, notes], refused
    found = _outcome(lambda: _check_found(model, dit, truth))
    exact = _outcome(lambda: _check_exact(model, dit))
    reuse, second = _outcomes_of_reuse(model, dit)
    results = [found, exact, reuse, second]
    as_described = all(result in ("yes", "-") for result in results)
    return [*start, found, str(dit.graphs), exact, reuse, second, dit.notes], as_described


def _explained(dit: Dit) -> dict[str, Any]:
    _reset()
    return {"options": dit.options, **dit.inputs()}


def _reset() -> None:
    torch._dynamo.reset()
    pab_compile.reset()


def _outcome(check: Callable[[], object]) -> str:
    """``yes``, or in one line why not."""
    try:
        check()
    except (AssertionError, PabError, RuntimeError) as error:
        return str(error).splitlines()[0][:120].replace("|", "/")
    return "yes"


def _check_found(model: torch.nn.Module, dit: Dit, truth: dict[str, int]) -> None:
    explanation = pab_compile.explain(model, **_explained(dit))
    assert explanation.counts() == truth, f"found {explanation.counts()}"
    assert explanation.num_graphs == dit.graphs, f"found {explanation.num_graphs} graphs"


def _compiled(model: torch.nn.Module, dit: Dit, **options: Any) -> Any:
    _reset()
    given = {"inner": "eager", **options, **dit.options}
    return torch.compile(model, backend="pab", fullgraph=dit.graphs == 1, options=given)


def _check_exact(model: torch.nn.Module, dit: Dit) -> None:
    compiled, loop = _compiled(model, dit, ranges={}), Denoising(dit, NUM_STEPS)
    run(compiled, **loop.at(0))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(3):
            pairs = zip(run(compiled, **loop.at(step)), run(model, **loop.at(step)), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), "not the same bits as eager"


def _outcomes_of_reuse(model: torch.nn.Module, dit: Dit) -> tuple[str, str]:
    compiled = _compiled(model, dit, ranges=RANGES, window=WINDOW)
    first, second = ({}, dict(dit.sizes))
    actual = {}
    outcomes = []
    for number, sizes in enumerate((first, second)):
        loop = Denoising(dit, NUM_STEPS, **sizes)

        def keep(number: int = number, loop: Denoising = loop) -> None:
            actual[number] = [run(compiled, **loop.at(step)) for step in range(NUM_STEPS)]

        outcomes.append(_outcome(keep))
    for number, sizes in enumerate((first, second)):
        if outcomes[number] == "yes":
            loop = Denoising(dit, NUM_STEPS, **sizes)
            outcomes[number] = _outcome(lambda n=number, i=loop: _compare(dit, i, actual[n]))
    return outcomes[0], outcomes[1]


def _compare(dit: Dit, loop: Denoising, actual: list[tuple[torch.Tensor, ...]]) -> None:
    oracle = Oracle(build(dit), dit)
    worst = 0.0
    for step, results in enumerate(actual):
        for computed, hooked in zip(results, oracle(step, NUM_STEPS, **loop.at(step)), strict=True):
            error = (computed - hooked).abs().max() / hooked.abs().max()
            worst = max(worst, float(error))
    assert worst < 1e-5, f"relative error {worst:.1e}"
    wanted = RANGES.keys() & {kind for _, kind in dit.kinds}
    assert oracle.reused or not wanted, "nothing was reused"


def _table(rows: dict[str, list[str]]) -> str:
    figures = costs.costs()
    lines = [_line(COLUMNS), "|---" * len(COLUMNS) + "|"]
    for name, dit in CATALOGUE.items():
        *checked, notes = rows.get(name, [name, f"`{dit.cls}`", _UNKNOWN, *[""] * 6])
        lines.append(_line([*checked, *costs.cells_of(name, figures), notes]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rows_of(path: Path) -> dict[str, list[str]]:
    """Name of a model -> the cells of its row that are checked here."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]
    return {row[0]: [*row[:_NUM_CHECKED], row[-1]] for row in rows if row[2] != _UNKNOWN}


def _exceptions() -> str:
    if not NO_DITS:
        return ""
    lines = [f"- `{name}`: {why}" for name, why in sorted(NO_DITS.items())]
    return "\nClasses that are no DiT:\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
