"""Fresh: the first call of a compiled model, in a process and with a cache folder of its own.

`python -m benchmarks.fresh '{"num_layers": 4, "backend": "pab"}'` is what the parent starts.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class FirstCall:
    """What one process saw.

    Attributes:
        seconds: from `torch.compile(...)` to the end of the first call.
        inner_seconds: of these, inside the inner compiler (`pab` only).
        num_pieces: number of distinct pieces (`pab` only).
        capture_seconds: of the seconds, in the capture (`pab` only).
        pass_seconds: of the seconds, in the passes (`pab` only).
        processor_seconds: processor time of the process and of what it started.
        dynamo_seconds: of the seconds, in Dynamo (`pab` only).
    """

    seconds: float
    inner_seconds: float
    num_pieces: int
    capture_seconds: float = 0.0
    pass_seconds: float = 0.0
    processor_seconds: float = 0.0
    dynamo_seconds: float = 0.0


def first_call(num_layers: int, backend: str, cache_dir: Path, inner: str = "") -> FirstCall:
    """Compiles and calls a small-width Latte in a new process.

    Args:
        num_layers: number of spatial blocks, and of temporal blocks.
        backend: name of the backend.
        cache_dir: Inductor's cache; an empty folder makes it a cold start.
        inner: the inner compiler of `pab`; empty for its default.

    Raises:
        RuntimeError: the process failed; holds the end of what it printed.
    """
    job = json.dumps({"num_layers": num_layers, "backend": backend, "inner": inner})
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache_dir)}
    environment.pop("PAB_DUMP", None)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fresh", job],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"first call with {job} failed:\n{done.stderr[-2000:]}")
    return FirstCall(**json.loads(done.stdout.splitlines()[-1]))


def _run(job: dict[str, Any]) -> FirstCall:
    from .latte import SMALL, Size, make_inputs, make_model

    size = Size(num_layers=job["num_layers"], **SMALL)
    model, inputs = make_model(size), make_inputs(size)
    options = {"inner": job["inner"]} if job["inner"] else None
    lines = _Lines()
    logger = logging.getLogger("pab_compile.compile.compile_log")
    logger.setLevel(logging.INFO)
    logger.addHandler(lines)
    start, used = time.perf_counter(), _processor_seconds()
    compiled = torch.compile(model, backend=job["backend"], options=options)
    with torch.no_grad():
        compiled(**inputs)
    seconds, used = time.perf_counter() - start, _processor_seconds() - used
    if job["backend"] != "pab":
        return FirstCall(seconds, 0.0, 0, processor_seconds=used)
    import pab_compile

    stats = pab_compile.stats(compiled)
    spent = [lines.seconds(part) for part in ("capture", "passes")]
    # The backend captures and compiles at the first call, which is not in Dynamo's time.
    times = torch._dynamo.utils.compilation_time_metrics  # noqa: TID251
    dynamo = sum(times.get("_compile.compile_inner", ()))
    return FirstCall(seconds, stats.compile_seconds, stats.num_pieces, *spent, used, dynamo)


def _processor_seconds() -> float:
    """Processor time of this process and of the compilers that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Lines(logging.Handler):
    """The lines of the log, which say what took how long."""

    def __init__(self) -> None:
        super().__init__()
        self._said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())

    def seconds(self, part: str) -> float:
        return sum(float(found) for found in re.findall(rf"{part} ([\d.]+)", " ".join(self._said)))


if __name__ == "__main__":
    print(json.dumps(_run(json.loads(sys.argv[1])).__dict__))
