"""Resuming: what an interrupted ``tune`` found so far, in a file.

The file is written after the weights were fitted stage by stage, and after every round of the last
fit. It names the request, so that it is not taken for another one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pab_compile.errors import CalibrationError
from pab_compile.plans.guidance import BATCH, CALLS, FIRST, SECOND
from pab_compile.report.files import write_text

from .pairs import Pairing
from .row import Row

_FORMAT = "pab_compile.tune/1"
_CLOSE = 1e-3


@dataclass(frozen=True)
class Progress:
    """What was found so far.

    Attributes:
        row: the steps and their weights.
        pairing: how a step carries two prompts; None if every computed step computes both.
        rounds: rounds of the last fit that are done.
        calls: model calls that the tuning took so far.
    """

    row: Row
    pairing: Pairing | None
    rounds: int
    calls: float


class Resume:
    """The file of one request.

    Args:
        path: of the file; None keeps nothing.
        request: what was asked for.
        sizes: per prompt, the root mean square of its full result. Other prompts have others.
    """

    def __init__(
        self, path: str | Path | None, request: Mapping[str, Any], sizes: Sequence[float]
    ) -> None:
        self._path = Path(path) if path is not None else None
        self._request = dict(request)
        self._sizes = list(sizes)

    def load(self, lengths: Sequence[float]) -> Progress | None:
        """What an earlier run of the same request found; None if there is none.

        Args:
            lengths: of the steps.

        Raises:
            CalibrationError: the file is of another request, cut short or edited.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            progress = self._read(content, lengths)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CalibrationError(
                f"The file {str(self._path)!r} is no progress of tune, or was cut short or edited: "
                f"{error}. Give another resume file, or delete it to begin anew."
            ) from error
        for name, value in self._request.items():
            if content["request"].get(name) != value:
                raise CalibrationError(
                    f"The file {str(self._path)!r} is of another request: {name} was "
                    f"{content['request'].get(name)!r} and is {value!r}. Give another resume file, "
                    "or delete it to begin anew."
                )
        old = content["sizes"]
        is_same = len(old) == len(self._sizes) and all(
            math.isclose(a, b, rel_tol=_CLOSE) for a, b in zip(old, self._sizes, strict=True)
        )
        if not is_same:
            raise CalibrationError(
                f"The file {str(self._path)!r} is of other prompts, another model or other noise: "
                "the results with every step computed differ. Give another resume file, or delete "
                "it to begin anew."
            )
        return progress

    def save(self, progress: Progress) -> None:
        """Write the file, whole or not at all."""
        if self._path is None:
            return
        row, pairing = progress.row, progress.pairing
        content = {
            "format": _FORMAT,
            "request": self._request,
            "sizes": self._sizes,
            "rounds": progress.rounds,
            "calls": progress.calls,
            "computed": row.computed,
            "changes": row.changes,
            "guides": row.guides,
            "pairing": None if pairing is None else [pairing.prompts, pairing.computes],
        }
        write_text(self._path, json.dumps(content))

    def _read(self, content: Any, lengths: Sequence[float]) -> Progress:
        """The progress in a file.

        Raises:
            ValueError, KeyError, TypeError: it is malformed.
        """
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {_FORMAT!r}")
        computed = tuple(map(int, content["computed"]))
        changes = tuple(_numbers(each) for each in content["changes"])
        guides = tuple(None if each is None else _numbers(each) for each in content["guides"])
        halves = [s for s, guide in zip(computed, guides, strict=True) if guide is not None]
        if not computed or list(computed) != sorted({0, *computed}) or computed[-1] >= len(lengths):
            raise ValueError(f"{list(computed)} are no steps that compute")
        like = Row.of(lengths, computed, halves)
        row = Row(like.lengths, computed, changes, guides)
        shapes = [
            [(len(c), len(g or ())) for c, g in zip(each.changes, each.guides, strict=True)]
            for each in (row, like)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError("its weights do not fit its steps")
        pairing = None if content["pairing"] is None else Pairing(*content["pairing"])
        if pairing is not None and (
            pairing.prompts not in (CALLS, BATCH) or pairing.computes not in (FIRST, SECOND)
        ):
            raise ValueError(f"{content['pairing']} is no pairing of prompts")
        if bool(halves) != (pairing is not None):
            raise ValueError("it leaves guidance out, but does not say how, or the reverse")
        if not isinstance(content["request"], dict) or not isinstance(content["sizes"], list):
            raise ValueError("it does not say what it was tuned for")
        return Progress(row, pairing, int(content["rounds"]), float(content["calls"]))


def _numbers(listed: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(map(float, listed))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{list(listed)} are not all finite")
    return numbers
