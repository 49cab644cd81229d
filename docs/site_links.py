"""A hook of MkDocs: links that leave ``docs/`` lead to the repository."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY = "https://github.com/pab-compile/pab_compile/blob/main/"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The text of a page, before it is read."""
    return re.sub(r"\]\(\.\./", f"]({REPOSITORY}", markdown)
