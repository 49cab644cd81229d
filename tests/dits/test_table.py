"""The table of all models in the documentation."""

from __future__ import annotations

from pathlib import Path

from .catalogue import CATALOGUE, NO_DITS, OPEN, transformer_classes

TABLE = Path(__file__).parents[2] / "docs" / "models.md"


def test_every_transformer_of_diffusers_is_described_or_said_not_to_be() -> None:
    described = {dit.cls for dit in CATALOGUE.values()}
    assert described | NO_DITS.keys() | OPEN.keys() == transformer_classes().keys()


def test_every_transformer_of_diffusers_is_listed() -> None:
    text = TABLE.read_text()
    missing = [name for name in transformer_classes() if f"`{name}`" not in text]
    assert not missing, f"run python -m tests.dits --write docs/models.md: {missing}"


def test_what_is_no_dit_is_described_nowhere_else_and_exists() -> None:
    described = {dit.cls for dit in CATALOGUE.values()}
    assert not NO_DITS.keys() & described
    assert not OPEN.keys() & (described | NO_DITS.keys())
