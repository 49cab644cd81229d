"""Option text: options as JSON or YAML, in a text or a file. Reading them runs no code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pab_compile.errors import OptionError
from pab_compile.plans.hints import YAML_ENDS, options_meant


def read_text(given: str | Path) -> dict[str, Any]:
    """Options by their names, as a text or a file states them, without validation.

    Args:
        given: JSON text, which begins with ``{``; YAML text, which has a line break or ``": "``; or
            the path of a file, which is YAML if it is named ``.yaml`` or ``.yml``, else JSON.

    Raises:
        OptionError: it is none of these, or malformed.
    """
    text, where, is_yaml = str(given), "The text of options", False
    is_json = isinstance(given, str) and text.lstrip().startswith("{")
    if isinstance(given, str) and not is_json and ("\n" in text or ": " in text):
        is_yaml = True
    elif not is_json:
        if meant := options_meant(text):
            raise OptionError(f"options={text!r} is no mapping, no JSON text and no file. {meant}")
        where, is_yaml = f"The options file {text!r}", text.endswith(YAML_ENDS)
        try:
            text = Path(given).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise OptionError(f"{where} does not exist.") from error
        except (OSError, ValueError) as error:
            raise OptionError(f"{where} cannot be read: {error}") from error
    kind = "YAML" if is_yaml else "JSON"
    try:
        content = from_yaml(text) if is_yaml else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where} cannot be read as {kind}: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{where} is no {kind} object with options: {content!r}.")
    return content


def from_yaml(text: str) -> Any:
    """What a YAML text states. As in YAML 1.2, only ``true`` and ``false`` are truth values.

    Raises:
        ValueError: the text is malformed.
        OptionError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise OptionError(
            "This is YAML, and PyYAML is not installed: pip install pyyaml, or give JSON."
        ) from error

    class Loader(yaml.SafeLoader):
        """Plain values only. ``off`` is a level, and no truth value."""

    truth = "tag:yaml.org,2002:bool"
    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in row if tag != truth]
        for first, row in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(truth, re.compile("^(?:true|false)$"), ["t", "f"])
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
