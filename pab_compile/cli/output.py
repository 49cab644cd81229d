"""Output: text for people, or one JSON object; the log and the bars go to standard error."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from pab_compile.report.text import fit, wrapped


def say(text: str, content: Mapping[str, Any], as_json: bool) -> None:
    """Print the result of a command.

    Args:
        text: for people.
        content: the same, in types of JSON.
        as_json: which of them to print.
    """
    print(json.dumps(content, indent=2, default=str) if as_json else text)


def to_terminal(is_quiet: bool) -> None:
    """Fit the terminal. Log lines go to standard error, unless bars are drawn there."""
    if sys.stdout.isatty():
        fit(shutil.get_terminal_size().columns)
    level = logging.WARNING if is_quiet or sys.stderr.isatty() else logging.INFO
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("pab_compile").setLevel(level)
    warnings.formatwarning = _warning


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without the place in the library that it came from."""
    text = f"pab: warning: {str(message).removeprefix('pab: ')}"
    return "\n".join(wrapped(text) if sys.stderr.isatty() else [text]) + "\n"


def progress(text: str) -> None:
    """Say on standard error what is done now."""
    logging.getLogger("pab_compile.cli").info("%s", text)
    if sys.stderr.isatty():
        print("\n".join(wrapped(f"pab: {text}")), file=sys.stderr)
