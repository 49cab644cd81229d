"""Pages of Markdown: their links, and the anchors of their headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)[^)]*\)|<img\b[^>]*src=\"([^\"]*)\"[^>]*>")
LINK = re.compile(
    r"\[[^\]]*\]\(([^)\s]+)[^)]*\)|<a\b[^>]*href=\"([^\"]*)\"|^\[[^\]]+\]: (\S+)$", re.M
)


def anchor(heading: str) -> str:
    """The anchor that a heading of a page has on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """The anchors of a page."""
    return {anchor(line.lstrip("#")) for line in prose(path).splitlines() if line.startswith("#")}


def prose(path: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(path: Path) -> Iterator[tuple[bool, str]]:
    """Whether each link of a page is a picture, and where it leads."""
    text = re.sub(r"`[^`\n]*`", "code", prose(path))
    yield from ((True, a or b) for a, b in PICTURE.findall(text))
    yield from ((False, a or b or c) for a, b, c in LINK.findall(PICTURE.sub("picture", text)))
