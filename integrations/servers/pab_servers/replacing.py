"""Replacing a function of a server wherever a module imported it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def replace(package: str, name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Put a function in the place of another one, in all loaded modules that have it.

    A module that imports the function later gets the new one from the module that defines it. Which
    modules import it differs between versions of a server.

    Args:
        package: the server's package.
        name: the name of the function.
        old: the server's function.
        new: what replaces it.
    """
    for full, module in list(sys.modules.items()):
        if full.split(".")[0] == package and vars(module).get(name) is old:
            setattr(module, name, new)
