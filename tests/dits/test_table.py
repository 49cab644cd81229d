"""The table of all models in the documentation is complete, and of these models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from . import costs
from .catalogue import CATALOGUE, NO_DITS, transformer_classes
from .spec import Dit

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
EVERY = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items()]


def rows() -> dict[str, list[str]]:
    """Name of the configuration -> cells of its row."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {row[0]: row for row in cells}


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="the last diffusers for Python 3.10 has fewer models"
)
def test_every_transformer_of_diffusers_is_described_or_said_not_to_be() -> None:
    described = {dit.cls for dit in CATALOGUE.values()}
    assert described.isdisjoint(NO_DITS)
    assert described | NO_DITS.keys() == transformer_classes().keys()


def test_the_table_holds_the_described_models_and_names_what_is_none() -> None:
    assert list(rows()) == list(CATALOGUE), "run python -m tests.dits --write docs/models.md"
    text = TABLE.read_text()
    assert all(f"- `{name}`: {why}" in text for name, why in NO_DITS.items())


@pytest.mark.parametrize("dit", EVERY)
def test_a_row_says_what_was_found_in_a_model_as_it_is_described(dit: Dit) -> None:
    _, cls, counts, found, graphs, exact, reuse, second, *figures, notes = rows()[dit.name]
    assert cls == f"`{dit.cls}`"
    kinds = {kind for _, kind in dit.kinds}
    assert counts and {count.split()[1] for count in counts.split(", ")} <= kinds
    assert graphs == str(dit.graphs)
    if dit.unsupported:
        assert [found, exact, reuse, second] == ["refused", "-", "-", "-"]
        assert dit.unsupported in notes
    else:
        assert [found, exact, reuse, second] == ["yes"] * 4
    assert dit.notes in notes
    assert tuple(figures) == costs.costs()[dit.name], "python -m tests.dits --no-checks --write ..."


@pytest.mark.parametrize("dit", EVERY)
def test_a_reuse_step_computes_at_most_a_twentieth_of_the_blocks(dit: Dit) -> None:
    in_float32, in_bfloat16 = costs.costs()[dit.name][1::2]
    is_counted = not dit.unsupported, not dit.unsupported and dit.dtype == torch.float32
    assert (in_bfloat16 != "-", in_float32 != "-") == is_counted
    assert all(float(x.rstrip("%")) <= 5 for x in (in_float32, in_bfloat16) if x != "-")
