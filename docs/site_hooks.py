"""Hooks of MkDocs: what the pages in ``docs/`` take from the rest of the repository.

- Links that leave ``docs/`` lead to the repository. Pictures are copied. Both must exist.
- Pages without sections have no table of contents, so that their tables get its room.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/pab-compile/pab_compile/blob/main/"
ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"(!\[[^\]]*\]\()\.\./([^)\s]+)")
LINK = re.compile(r"\]\(\.\./([^)#\s]+)")
COPIED = "elsewhere/"
# MkDocs counts the warnings of its own loggers, and fails with --strict.
LOG = logging.getLogger("mkdocs.hooks.site_hooks")


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures of other folders."""
    from mkdocs.structure.files import File

    pages = [page.content_string for page in files.documentation_pages()]
    wanted = {target for text in pages for _, target in PICTURE.findall(text)}
    for target in sorted(wanted):
        if (ROOT / target).is_file():
            files.append(File.generated(config, COPIED + target, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The text of a page, before it is read."""
    if "\n## " not in markdown and "\n:::" not in markdown:
        page.meta.setdefault("hide", ["toc"])
    for target in LINK.findall(markdown):
        if not (ROOT / target).exists():
            LOG.warning("%s links to %s, which does not exist.", page.file.src_path, target)
    markdown = PICTURE.sub(rf"\g<1>{COPIED}\g<2>", markdown)
    return re.sub(r"\]\(\.\./", f"]({REPOSITORY}", markdown)
