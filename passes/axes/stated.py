"""Stated inputs: which inputs the user means by the names in the option ``axes``.

A name means one input, or all entries of a list or dict. The name of an entry comes first::

    {"residuals": "step", "residuals[1]": "prompt"}
    -> {"residuals[0]": "step", "residuals[1]": "prompt", "residuals[2]": "step"}
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from torch import fx

from pab_compile.passes.errors import StatedAxesError
from pab_compile.passes.graph import ir

_PLACE = re.compile(r"(\[\d+\])+$")


def by_entry(inputs: Sequence[fx.Node], stated: Mapping[str, str]) -> dict[str, str]:
    """What is stated, by the full name of each input.

    Args:
        inputs: the inputs of a graph that are no weights.
        stated: the option ``axes``.

    Raises:
        StatedAxesError: a name means none of the inputs.
    """
    check_names(inputs, stated)
    found: dict[str, str] = {}
    for node in inputs:
        name = next((name for name in names_of(node) if name in stated), None)
        if name is not None:
            found[ir.source(node)] = stated[name]
    return found


def names_of(node: fx.Node) -> tuple[str, ...]:
    """The names that mean an input: its own, then those of its lists and dicts."""
    name = ir.source(node)
    return (*dict.fromkeys((name, list_name(name), *reversed(ir.holders(node)))),)


def list_name(name: str) -> str:
    """Name of the list that an entry belongs to; other names as they are."""
    return _PLACE.sub("", name)


def is_named(name: str, stated: Iterable[str]) -> bool:
    """Whether some stated name means an input of this name."""
    return not {name, list_name(name)}.isdisjoint(stated)


def check_names(inputs: Sequence[fx.Node], stated: Collection[str]) -> None:
    """Refuse names that mean none of the inputs. A graph may not read every entry of a list.

    Raises:
        StatedAxesError: says which name was perhaps meant, and which inputs there are.
    """
    known = {name: None for node in inputs for name in names_of(node)}
    lists = dict.fromkeys(list_name(ir.source(node)) for node in inputs)
    for name in stated:
        is_entry = name != list_name(name) and list_name(name) in lists
        if name not in known and not is_entry:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise StatedAxesError(
                f"axes are stated for '{name}', which is no input of this graph{hint} "
                f"(inputs: {', '.join(lists)})"
            )
