"""Hints: what users mean by a name that is not known."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from typing import Any

from pab_compile.passes.sites.site import KINDS

from .levels import LEVELS
from .presets import PRESETS

YAML_ENDS = (".yaml", ".yml")
"""How the name of a YAML file ends."""


def near_miss(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, and the list of the known names."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(names)}."


def options_meant(text: str) -> str:
    """What is meant by a text that is given as all options; ``""`` if it may be a file."""
    name = text.strip()
    if name.lower() in PRESETS:
        return f'It is a preset: options={{"ranges": "{name.lower()}"}}.'
    if name.lower() in LEVELS:
        return f'It is a level: pab_compile.enable(pipe, "{name.lower()}").'
    if name.startswith("{") or name.endswith((".json", *YAML_ENDS)) or os.path.exists(name):
        return ""
    return 'Give a dict such as options={"ranges": "linear3"}, the same as JSON text, or a file.'


def option_meant(name: Any, value: Any, known: Iterable[str]) -> str:
    """A hint for an option that does not exist."""
    if name in KINDS:
        return f' A kind belongs to ranges: options={{"ranges": {{{name!r}: {value!r}}}}}.'
    if name == "level":
        return " A level is an argument of pab_compile.enable: enable(pipe, level)."
    if name == "buckets":
        return " It is an argument of pab_compile.enable: enable(pipe, buckets=...)."
    if name in ("backend", "fullgraph", "dynamic"):
        return f" It is an argument of torch.compile itself: torch.compile(model, {name}=...)."
    return near_miss(name, known)


def preset_meant(name: str) -> str:
    """A hint for a preset that does not exist."""
    if name in LEVELS:
        return f' It is a level: pab_compile.enable(pipe, "{name}"), or ranges="{LEVELS[name]}".'
    return near_miss(name, PRESETS)
