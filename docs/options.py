"""Prints docs/options.md, from the docstring of ``pab_compile.Options`` and the presets.

python docs/options.py > docs/options.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from pab_compile import Options
from pab_compile.options import PRESETS

HEAD = """# Options

This page is generated: `python docs/options.py > docs/options.md`.

```python
model = torch.compile(model, backend="pab", options={"ranges": {"spatial": 2, "temporal": 4}})
```

The [glossary](glossary.md) defines the words. [Plans](plans.md) explains `ranges`, `window`,
`predict`, `predict_in`, `coalesce`, `plan` and the options about caches. [Parallel](parallel.md)
explains the options about ranks. [Recognition](recognition.md) explains `axes`.

torch.compile takes `mode=` or `options=`, but not both. With options, write the mode among them:
`options={"mode": "max-autotune", "ranges": "linear3"}`.
"""

PRESET_HEAD = """
## Presets

`options={"ranges": "pab246"}` names a preset. A preset also sets `window`, `predict`, `cut` and
`coalesce`. If you give one of these options, your value replaces that of the preset. Kinds that a
preset does not name compute at every step. Bounds of a window are fractions of the steps if they
are floats, and timestep values if they are integers.

This project made `linear2`, `linear3`, `linear4` and `linear5`. The paper and the code of its
authors define the other presets.
"""


def described(docstring: str) -> dict[str, str]:
    """Name -> meaning, from the ``Attributes:`` section of a docstring in Google style."""
    section = docstring.partition("\nAttributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r" {4}(\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif line.startswith(" " * 8) and name:
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return found


def written(value: Any) -> str:
    """A value as a user writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def default_of(option: Field[Any]) -> str:
    """The default of an option, as a cell."""
    value = option.default if option.default_factory is MISSING else option.default_factory()
    return f"`{written(value)}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |\n" for row in lines
    )


def alike(ranges: Mapping[str, int]) -> str:
    """The ranges of a preset, kinds of the same range together."""
    kinds: dict[int, list[str]] = {}
    for kind, every in ranges.items():
        kinds.setdefault(every, []).append(kind)
    return "; ".join(f"{', '.join(names)}: {every}" for every, names in kinds.items())


def page() -> str:
    """The whole page."""
    meanings = described(inspect.getdoc(Options) or "")
    options = [
        (f"`{option.name}`", meanings[option.name].replace("``", "`"), default_of(option))
        for option in fields(Options)
    ]
    presets = [
        (
            f"`{name}`",
            alike(preset.ranges),
            f"`{preset.window}`",
            str(preset.predict),
            f"`{preset.cut}`",
            str(preset.coalesce),
        )
        for name, preset in PRESETS.items()
    ]
    preset_columns = ("preset", "ranges", "window", "predict", "cut", "coalesce")
    return (
        f"{HEAD}\n{table(('option', 'meaning', 'default'), options)}"
        f"{PRESET_HEAD}\n{table(preset_columns, presets)}"
    )


if __name__ == "__main__":
    print(page(), end="")
