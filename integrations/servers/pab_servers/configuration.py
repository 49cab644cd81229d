"""What users write: JSON with the options of ``pab_compile.enable``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import pab_compile
from pab_compile import OptionError

PARTS = ("transformer", "transformer_2", "unet")
"""Attributes of a server's pipeline that denoise, where it names none itself."""


def read(given: Any) -> dict[str, Any]:
    """The options of a configuration.

    Args:
        given: a mapping, JSON text, the path of a JSON file, or None for the defaults.

    Raises:
        OptionError: it is none of these.
    """
    if given is None or given == "":
        return {}
    if isinstance(given, Mapping):
        return dict(given)
    text = str(given)
    if not text.lstrip().startswith("{"):
        path = Path(text)
        if not path.is_file():
            raise OptionError(f"The configuration {text!r} is neither JSON nor a file that exists.")
        text = path.read_text(encoding="utf-8")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise OptionError(f"The configuration is no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise OptionError(f'The configuration is a {type(found).__name__}; give {{"level": ...}}.')
    return found


def enable(pipeline: Any, options: Mapping[str, Any], parts: Any = None) -> pab_compile.Handle:
    """Compile what denoises in a server's pipeline, which may be a module itself.

    Args:
        pipeline: the pipeline.
        options: those of ``pab_compile.enable``.
        parts: the names of the attributes that denoise; None for ``PARTS``.
    """
    found = {name: getattr(pipeline, name, None) for name in parts or PARTS}
    modules = {name: part for name, part in found.items() if isinstance(part, torch.nn.Module)}
    if not modules:
        return pab_compile.enable(pipeline, options=options)  # its error says what was found
    return pab_compile.enable(SimpleNamespace(**modules), options=options)
