"""docs/api.md names everything that is public, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pab_compile

PAGE = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_page_lists_each_public_name_once() -> None:
    first_cells = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    listed = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(listed) == sorted(pab_compile.__all__)
