"""Benchmark `parallel`: two processes that share the tokens, over gloo on one machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.progress import Progress
from torch import fx

import pab_compile

from .latte import CPU_SMALL, TINY, Size, make_inputs, make_model
from .results import Result
from .sampling import ddim
from .timing import median, ratios

NUM_RANKS = 2
ALWAYS: dict[str, Any] = {"ranges": {}}
PAB246: dict[str, Any] = {
    "ranges": {"spatial": 2, "temporal": 4, "cross": 6},
    "window": (0.0, 1.0),
}


@dataclass
class Meter:
    """An inner compiler that runs pieces node by node and takes note of what they exchange.

    Attributes:
        seconds: spent in starting collectives and waiting for them.
        sent: bytes that this rank sent to the others.
        calls: collectives that ran.
    """

    seconds: float = 0.0
    sent: int = 0
    calls: int = 0

    def __call__(self, graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return _Metered(graph_module, self).run


class _Metered(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule, meter: Meter) -> None:
        super().__init__(graph_module)
        self._meter = meter

    def run_node(self, n: fx.Node) -> Any:
        if not str(n.target).startswith("_c10d_functional"):
            return super().run_node(n)
        start = time.perf_counter()
        found = super().run_node(n)
        self._meter.seconds += time.perf_counter() - start
        if "wait_tensor" not in str(n.target):
            operand = self.env[n.all_input_nodes[0]]
            if "all_to_all" in str(n.target):
                sizes: Any = list(n.args[2])  # type: ignore[arg-type]
                away = sum(sizes) - sizes[dist.get_rank()]
            else:
                away = operand.numel() * (NUM_RANKS - 1)
            self._meter.sent += away * operand.element_size()
            self._meter.calls += 1
        return found


def _generate(model: Any, size: Size, num_steps: int) -> float:
    """Seconds of one generation."""
    calls = [make_inputs(size, t) for t in ddim(num_steps).timesteps]
    start = time.perf_counter()
    for inputs in calls:
        inputs["encoder_hidden_states"] = calls[0]["encoder_hidden_states"]
        model(**inputs)
    return time.perf_counter() - start


def _work(rank: int, folder: str, size: Size, num_steps: int, rounds: int, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", NUM_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS)
    model, together = make_model(size), {"sequence_parallel": NUM_RANKS, "inner": "eager"}
    meter = Meter()
    variants = {
        "always, one": {**ALWAYS, "inner": "eager"},
        "pab246, one": {**PAB246, "inner": "eager"},
        "always": {**ALWAYS, **together},
        "pab246": {**PAB246, **together},
        "always, metered": {**ALWAYS, **together, "inner": meter},
        "pab246, metered": {**PAB246, **together, "inner": meter},
    }
    found: dict[str, list[Any]] = {name: [] for name in variants}
    with torch.no_grad():
        runs = {
            name: torch.compile(model, backend="pab", options=options)
            for name, options in variants.items()
        }
        for compiled in runs.values():
            _generate(compiled, size, num_steps)
        for _ in range(rounds):
            for name, compiled in runs.items():
                meter.seconds, meter.sent, meter.calls = 0.0, 0, 0
                dist.barrier()
                seconds = 0.0
                if "one" not in name or rank == 0:  # alone: the other process is idle
                    seconds = _generate(compiled, size, num_steps)
                found[name].append((seconds, meter.seconds, meter.sent, meter.calls))
    if rank == 0:
        answers.put(found)
    dist.barrier()
    dist.destroy_process_group()


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measures generations of two processes and of one, with reuse and without."""
    size, num_steps, rounds = (TINY, 12, 3) if quick else (CPU_SMALL, 24, 8)
    result.settings = {
        "processes": NUM_RANKS,
        "threads per process": 1,
        "layers": size.num_layers,
        "width": size.num_heads * size.head_dim,
        "latents": f"2 x 4 x {size.num_frames} x {size.side} x {size.side}",
        "steps": num_steps,
        "rounds": rounds,
        "pieces": "eager",
    }
    task = progress.add_task("two processes take turns with one", total=1)
    context = mp.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder)), size, num_steps, rounds, answers)
        processes = mp.spawn(_work, arguments, nprocs=NUM_RANKS, join=False)
        found: dict[str, list[tuple[float, float, int, int]]] = answers.get()
        processes.join()
    progress.remove_task(task)
    seconds = {name: [sample[0] for sample in samples] for name, samples in found.items()}

    def ratio(name: str, above: str, below: str) -> None:
        samples = ratios(seconds, above, below)
        result.add(name, median(samples), samples=samples)

    ratio("PAB246, speed of a step against no reuse: two processes", "always", "pab246")
    ratio("the same: one process", "always, one", "pab246, one")
    ratio("two processes against one, no reuse", "always, one", "always")
    ratio("two processes against one, PAB246", "pab246, one", "pab246")
    for name in ("always", "pab246"):
        samples = [100 * inside / all_ for all_, inside, _, _ in found[f"{name}, metered"]]
        words = {"always": "no reuse", "pab246": "PAB246"}[name]
        result.add(f"share of a step in collectives, {words}", median(samples), "%", None, samples)
        _, _, sent, calls = found[f"{name}, metered"][0]
        result.add(f"sent by one process in a generation, {words}", sent / 1e6, "MB")
        result.add(f"collectives of a generation, {words}", calls, "")
        options = ALWAYS if name == "always" else PAB246
        with torch.no_grad():
            foretold = pab_compile.comm(
                make_model(size),
                **make_inputs(size),
                num_ranks=NUM_RANKS,
                schedule=pab_compile.Schedule(num_steps),
                options=options,
            )
        result.add(f"foretold: sent by one process, {words}", foretold.wire_bytes / 1e6, "MB")
    result.notes.append(
        "A collective's time holds the waiting for the other process; both share one machine."
    )
