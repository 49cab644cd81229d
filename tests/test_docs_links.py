"""Links between the pages of the repository lead to files and headings that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.pages import anchors, links

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(
        path
        for name in ("docs", "integrations", "benchmarks", "examples", "tests", "passes")
        for path in (ROOT / name).rglob("*.md")
    ),
]


def wrong_links(page: Path) -> Iterator[str]:
    """The relative links of a page that lead nowhere."""
    for _, target in links(page):
        if target.startswith(("https://", "http://")):
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists():
            yield f"{target}: no such file"
        elif heading and heading not in anchors(path):
            yield f"{target}: no such heading"


def test_relative_links_lead_somewhere() -> None:
    found = {page: list(wrong_links(page)) for page in PAGES}
    assert len(found) > 20
    assert {page: wrong for page, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize("link", ["none.md", "page.md#none", "#none"])
def test_a_wrong_link_is_found(link: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A heading\n[right](page.md#a-heading) and [wrong]({link})\n")
    assert len(list(wrong_links(page))) == 1
