"""Benchmark `explain_time`: the processor time of all passes at the size that people run.

`explain` traces a model with Dynamo, captures the graph, and runs every pass. Beside it stands the
trace by Dynamo alone, with a backend that does nothing: no change to this library makes it faster.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import Progress

import pab_compile

from .real_models import REAL_MODELS, RealModel
from .results import Result, Target

LIMIT = Target("<=", 15)
NOT_ON_META = ("HunyuanVideo-1.5", "Mochi")
"""Their forwards read a value, or enter autocast for the device, which `meta` does not have."""


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measure every model, on one thread."""
    names = [name for name in REAL_MODELS if name not in NOT_ON_META]
    names = names[:1] if quick else names
    threads = torch.get_num_threads()
    result.settings = {"threads": 1, "plan": "linear3", "runs": 1}
    torch.set_num_threads(1)
    task = progress.add_task("explain", total=len(names))
    for name in names:
        progress.update(task, description=name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of models that are described only
            _measure(result, REAL_MODELS[name])
        progress.advance(task)
    progress.remove_task(task)
    torch.set_num_threads(threads)
    result.notes.append(
        "Processor time of one process, of one run each. The models are described only, on `meta` "
        "tensors in bfloat16. Dynamo alone: torch.compile of the same call with a backend that "
        "returns the graph as it is. The rest is the capture and the passes."
    )


def _measure(result: Result, real: RealModel) -> None:
    def explain(model: torch.nn.Module, inputs: dict[str, Any]) -> None:
        pab_compile.explain(model, options={"ranges": "linear3"}, **inputs)

    def trace(model: torch.nn.Module, inputs: dict[str, Any]) -> None:
        torch.compile(model, backend=lambda graph, _: graph)(**inputs)

    ours, dynamo = _seconds(real, explain), _seconds(real, trace)
    row = f"{real.name}, {real.size}: processor time in seconds"
    result.add(f"{row}: explain", ours, "s", LIMIT)
    result.add(f"{row}: Dynamo alone", dynamo, "s")
    result.add(f"{row}: the rest", ours - dynamo, "s")


def _seconds(real: RealModel, call: Callable[[torch.nn.Module, dict[str, Any]], None]) -> float:
    torch.compiler.reset()
    model, inputs = real.build(), real.inputs()
    start = time.process_time()
    with torch.no_grad():
        call(model, inputs)
    return time.process_time() - start
