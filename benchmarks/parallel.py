"""Benchmark `parallel`: two processes that share tokens or batch, over gloo on one machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.progress import Progress
from torch import fx

import pab_compile
import pab_compile.compile.build
from pab_compile.passes.program import Program

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


@dataclass(frozen=True)
class _InPlace:
    """Instead of the pass that lets exchanges overlap with computation: they stay in place."""

    name: str = "overlap"

    def __call__(self, _: Program) -> int:
        return 0


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


class _FullAttention(torch.nn.Module):
    """Blocks of attention over all tokens, whose queries travel while its keys are computed.

    Latte's attentions have nothing to compute while their one tensor travels.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, width = size.num_heads, size.num_heads * size.head_dim
        self.embed, self.out = torch.nn.Linear(4, width), torch.nn.Linear(width, 4)
        self.time = torch.nn.Linear(1, width)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in "qkvo")
            for _ in range(size.num_layers)
        )
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
        batch, channels, frames, height, width = hidden_states.shape
        x = self.embed(hidden_states.permute(0, 2, 3, 4, 1).flatten(1, 3))
        x = x + self.time(timestep[:, None].float() / 1000)[:, None]
        for q, k, v, out in self.blocks:
            y = torch.nn.functional.layer_norm(x, x.shape[-1:])
            parts = (part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
            y = torch.nn.functional.scaled_dot_product_attention(*parts)
            x = x + out(y.transpose(1, 2).flatten(2))
        x = self.out(x).reshape(batch, frames, height, width, channels)
        return x.permute(0, 4, 1, 2, 3)


def _work(rank: int, folder: str, size: Size, num_steps: int, rounds: int, answers: Any) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", NUM_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS)
    torch.compiler.config.recompile_limit = 64  # one model, many variants
    model, together = make_model(size), {"sequence_parallel": NUM_RANKS, "inner": "eager"}
    rows = {"batch_parallel": NUM_RANKS}
    meter = Meter()
    variants = {
        "always, one": {**ALWAYS, "inner": "eager"},
        "pab246, one": {**PAB246, "inner": "eager"},
        "always": {**ALWAYS, **together},
        "pab246": {**PAB246, **together},
        "always, metered": {**ALWAYS, **together, "inner": meter},
        "pab246, metered": {**PAB246, **together, "inner": meter},
        "always, rows": {**ALWAYS, **rows, "inner": "eager"},
        "pab246, rows": {**PAB246, **rows, "inner": "eager"},
        "always, rows, metered": {**ALWAYS, **rows, "inner": meter},
        "always, in place": {**ALWAYS, **together},
        "full": {**ALWAYS, **together},
        "full, in place": {**ALWAYS, **together},
    }
    found: dict[str, list[Any]] = {name: [] for name in variants}
    with torch.no_grad():
        full = _FullAttention(size)
        runs = {
            name: torch.compile(
                full if name.startswith("full") else model, backend="pab", options=options
            )
            for name, options in variants.items()
        }
        for name, compiled in runs.items():
            shipped = pab_compile.compile.build.Overlap
            overlap = _InPlace if "in place" in name else shipped
            with mock.patch.object(pab_compile.compile.build, "Overlap", overlap):
                _generate(compiled, size, num_steps)  # compiles
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
    ratio("the batch on two processes against one, no reuse", "always, one", "always, rows")
    ratio("the batch on two processes against one, PAB246", "pab246, one", "pab246, rows")
    ratio(
        "the batch on two processes against the tokens on two, no reuse", "always", "always, rows"
    )
    ratio("the batch on two processes against the tokens on two, PAB246", "pab246", "pab246, rows")
    ratio("exchanges in place against overlapped", "always, in place", "always")
    ratio("the same: attention over all tokens", "full, in place", "full")
    for name in ("always", "pab246"):
        samples = [100 * inside / all_ for all_, inside, _, _ in found[f"{name}, metered"]]
        words = {"always": "no reuse", "pab246": "PAB246"}[name]
        result.add(f"share of a step in collectives, {words}", median(samples), "%", None, samples)
        _, _, sent, calls = found[f"{name}, metered"][0]
        result.add(f"sent by one process in a generation, {words}", sent / 1e6, "MB")
        result.add(f"collectives of a generation, {words}", calls, "")
        options = ALWAYS if name == "always" else PAB246
        predicted = _predicted(size, num_steps, options) / 1e6
        result.add(f"predicted: sent by one process, {words}", predicted, "MB")
    samples = [100 * inside / all_ for all_, inside, _, _ in found["always, rows, metered"]]
    result.add("share of a step in collectives, the batch", median(samples), "%", None, samples)
    _, _, sent, calls = found["always, rows, metered"][0]
    result.add("sent by one process in a generation, the batch", sent / 1e6, "MB")
    result.add("collectives of a generation, the batch", calls, "")
    predicted = _predicted(size, num_steps, {**ALWAYS, "batch_parallel": NUM_RANKS}) / 1e6
    result.add("predicted: sent by one process, the batch", predicted, "MB")
    result.notes.append(
        "A collective's time holds the waiting for the other process; both share one machine."
    )


def _predicted(size: Size, num_steps: int, options: dict[str, Any]) -> float:
    """Bytes that one process sends in a generation."""
    with torch.no_grad():
        return pab_compile.comm(
            make_model(size),
            **make_inputs(size),
            num_ranks=NUM_RANKS,
            schedule=pab_compile.Schedule(num_steps),
            options=options,
        ).wire_bytes
