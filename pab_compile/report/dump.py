"""Dumps: the graph before and after each pass, and the sites.

``options["dump"]`` or the environment variable ``PAB_DUMP`` names a directory. Each compiled graph
takes the next free subdirectory::

    graph_0/03_broadcast.before.txt    the graph as text (passes/graph/printer.py)
    graph_0/03_broadcast.after.txt
    graph_0/03_broadcast.diff
    graph_0/sites.json                 every site, with evidence and decision
    graph_0/sites.dot, sites.svg       the same as a picture

If ``TORCH_TRACE`` is set, the same texts go to torch's structured trace. There ``tlparse`` shows
them next to those of Dynamo and Inductor. If both are off, nothing is formatted, since callers pass
functions.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch._logging import trace_structured

from pab_compile.passes.graph.printer import diff_text

from .draw import SiteBox, to_dot, to_svg


class Dumper:
    """Writes the dump of one compiled graph.

    Args:
        directory: where to write. It is created at the first write. None writes no files.
    """

    def __init__(self, directory: str | Path | None) -> None:
        self._directory = Path(directory) if directory else None
        self._graph_directory: Path | None = None
        self._num_passes = 0

    @property
    def is_on(self) -> bool:
        """Whether anything is written."""
        return self._directory is not None or _is_tracing()

    @contextmanager
    def watch(self, pass_name: str, text: Callable[[], str]) -> Iterator[None]:
        """Write the graph before and after the body, and the difference.

        Args:
            pass_name: name of the pass that the body runs.
            text: prints the current graph. It is called before and after the body.
        """
        self._num_passes += 1
        if not self.is_on:
            yield
            return
        stem = f"{self._num_passes:02d}_{pass_name}"
        before = text()
        self._write(f"{stem}.before.txt", before)
        yield
        after = text()
        self._write(f"{stem}.after.txt", after)
        self._write(f"{stem}.diff", diff_text(before, after))

    def sites(self, table: Callable[[], object], boxes: Callable[[], Sequence[SiteBox]]) -> None:
        """Write the sites as ``sites.json``, ``sites.dot`` and ``sites.svg``.

        Args:
            table: returns everything about the sites, in types of JSON.
            boxes: returns the sites to draw, in model order.
        """
        if not self.is_on:
            return
        self._write("sites.json", json.dumps(table(), indent=2) + "\n")
        drawn = boxes()
        self._write("sites.dot", to_dot(drawn))
        self._write("sites.svg", to_svg(drawn))

    def _write(self, name: str, text: str) -> None:
        if self._directory is not None:
            if self._graph_directory is None:
                self._graph_directory = _claim(self._directory)
            (self._graph_directory / name).write_text(text, encoding="utf-8")
        _trace(name, text)


def _claim(directory: Path) -> Path:
    """Make the next free ``graph_N``. Several processes may write to one directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        candidate = directory / f"graph_{number}"
        try:
            candidate.mkdir()
        except FileExistsError:
            continue
        return candidate
    raise AssertionError("unreachable")


def _trace(name: str, text: str) -> None:
    """Write one artifact to the trace. tlparse shows ``string`` and ``json`` as text."""
    stem, _, ending = name.rpartition(".")
    encoding = "json" if ending == "json" else "string"
    trace_structured(
        "artifact",
        metadata_fn=lambda: {
            "name": f"pab_{stem if ending in ('json', 'txt') else name}",
            "encoding": encoding,
        },
        payload_fn=lambda: text,
    )


def _is_tracing() -> bool:
    """Whether TORCH_TRACE is set. Without it, torch's handler has no directory."""
    handlers = logging.getLogger("torch.__trace").handlers
    return any(getattr(handler, "root_dir", None) is not None for handler in handlers)
