"""Benchmark `steady`: the speed of a step once everything is compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.progress import Progress
from torch import fx

import pab_compile

from .latte import CPU_DEEP, SMALL, TINY, Size, make_inputs, make_model
from .results import Result, Target
from .sampling import ddim
from .specialise import Rewritten, Specialised, rewrite, specialise
from .timing import Samples, alternate, median, ratios

ATTENTION = ("spatial", "temporal", "cross")
NO_REUSE = {"ranges": dict.fromkeys(ATTENTION, 1)}
PAB246 = {"ranges": {"spatial": 2, "temporal": 4, "cross": 6}, "window": (0.0, 1.0)}
PATTERNS = ("CCC", "---", "C--", "CC-", "C-C")
CYCLE = 12
"""Steps after which the patterns of ranges 2, 4 and 6 repeat; all five occur among them."""


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Measures steps without reuse, steps of every pattern, and the executor alone."""
    size = TINY if quick else CPU_DEEP
    rounds = 12 if quick else 30
    cycles = 2 if quick else 4
    deep = Size(num_layers=4 if quick else 28, **SMALL)
    result.settings = {
        "layers": size.num_layers,
        "width": size.num_heads * size.head_dim,
        "latents": f"2 x 4 x {size.num_frames} x {size.side} x {size.side}",
        "steps without reuse": rounds,
        "cycles of 12 steps": cycles,
        "layers for the overhead": deep.num_layers,
    }
    with torch.no_grad():
        _measure_no_reuse(result, size, rounds, progress)
        torch.compiler.reset()
        _measure_patterns(result, size, cycles, progress)
        torch.compiler.reset()
        _measure_overhead(result, deep, 3 * rounds, progress)
    torch.compiler.reset()


class Stepper:
    """Calls a model step after step, over and over through one schedule."""

    def __init__(self, call: Callable[..., Any], size: Size, num_steps: int) -> None:
        self._call = call
        self._inputs = [make_inputs(size, t) for t in ddim(num_steps).timesteps]
        for inputs in self._inputs:  # a pipeline hands the same prompt tensor to every step
            inputs["encoder_hidden_states"] = self._inputs[0]["encoder_hidden_states"]
        self._step = -1

    def __call__(self) -> Any:
        self._step = (self._step + 1) % len(self._inputs)
        return self._call(**self._inputs[self._step])


def _measure_no_reuse(result: Result, size: Size, rounds: int, progress: Progress) -> None:
    model = make_model(size)
    task = progress.add_task("compiling: stock, pab with ranges 1", total=2)
    runs = {}
    for name, compiled in (
        ("stock", torch.compile(model)),
        ("pab", torch.compile(model, backend="pab", options=NO_REUSE)),
    ):
        runs[name] = Stepper(compiled, size, num_steps=30)
        for _ in range(3):
            runs[name]()
        progress.advance(task)
    progress.remove_task(task)
    seen = ratios(alternate(runs, rounds, progress, "steps without reuse"), "stock", "pab")
    name = "ranges 1: speed of pab / stock torch.compile"
    result.add(name, median(seen), target=Target(">=", 0.97), samples=seen)


def _measure_patterns(result: Result, size: Size, cycles: int, progress: Progress) -> None:
    """Steps of a real PAB246 generation, each beside the specialised graph of its pattern."""
    model, inputs = make_model(size), make_inputs(size)
    rewritten = rewrite(model, inputs, PAB246)
    whole = _specialise_all(rewritten, progress)
    num_steps = CYCLE * (cycles + 1)
    pab = Stepper(torch.compile(model, backend="pab", options=PAB246), size, num_steps)
    samples: dict[str, Samples] = {pattern: {"pab": [], "whole": []} for pattern in PATTERNS}
    task = progress.add_task("steps of PAB246", total=num_steps)
    for step in range(num_steps):
        pattern = pattern_of(step)
        with pab_compile.step(step, num_steps):  # one generation, its first call included
            start = time.perf_counter()
            pab()
            middle = time.perf_counter()
        whole[pattern].run()
        end = time.perf_counter()
        if step >= CYCLE:  # the first cycle compiles and warms up
            samples[pattern]["pab"].append(middle - start)
            samples[pattern]["whole"].append(end - middle)
        progress.advance(task)
    progress.remove_task(task)
    seen_patterns = set(pab_compile.stats(model).patterns)
    assert seen_patterns == set(PATTERNS), f"the plan gave other patterns: {seen_patterns}"
    for pattern in PATTERNS:
        seen = ratios(samples[pattern], "pab", "whole")
        name = f"pattern {pattern}: step time of pab / one specialised whole graph"
        result.add(name, median(seen), target=Target("<=", 1.05), samples=seen)
    result.notes.append(
        "Patterns: spatial/temporal/cross, C computed, - reused, with the steps of a PAB246 "
        "generation. The specialised graph gets reused outputs, and what is computed once per "
        "generation, as inputs; it is called without Dynamo, pab with it."
    )


def pattern_of(step: int) -> str:
    """Returns the pattern of a step with ranges 2, 4 and 6 over all steps."""
    return "".join("C" if step % every == 0 else "-" for every in (2, 4, 6))


def _specialise_all(rewritten: Rewritten, progress: Progress) -> dict[str, Specialised]:
    task = progress.add_task("compiling one whole graph per pattern", total=len(PATTERNS))
    whole = {}
    for pattern in PATTERNS:
        pairs = zip(ATTENTION, pattern, strict=True)
        whole[pattern] = specialise(rewritten, frozenset(k for k, letter in pairs if letter == "-"))
        progress.advance(task)
    progress.remove_task(task)
    return whole


class Remembered:
    """An inner compiler whose functions return what they returned first: calls without work."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, graph_module: fx.GraphModule, args: Sequence[Any]) -> Callable[..., Any]:
        outputs: list[Any] = []

        def function(*values: Any) -> Any:
            self.num_calls += 1
            if not outputs:
                outputs.append(graph_module(*values))
            return outputs[0]

        return function


def _always_compute(*_: Any) -> None:
    """A plan under which every site has a branch and none is ever reused."""


def _measure_overhead(result: Result, size: Size, rounds: int, progress: Progress) -> None:
    """What a step costs when its pieces cost nothing, above what Dynamo itself costs."""
    pieces, whole = Remembered(), Remembered()
    model = make_model(size)
    options = {"plan": _always_compute, "inner": pieces}
    runs = {
        "pab": Stepper(torch.compile(model, backend="pab", options=options), size, 30),
        "dynamo": Stepper(torch.compile(model, backend=whole), size, 30),
    }
    for run_step in runs.values():
        for _ in range(3):
            run_step()
    before = pieces.num_calls
    seconds = alternate(runs, rounds, progress, "steps without work")
    per_step = (pieces.num_calls - before) / rounds
    extra = [
        (ours - dynamo) / per_step * 1e6
        for ours, dynamo in zip(seconds["pab"], seconds["dynamo"], strict=True)
    ]
    result.add("pieces called per step", per_step, "pieces")
    result.add("executor overhead per piece", median(extra), "us", samples=extra)
    dynamo = [value * 1e6 for value in seconds["dynamo"]]
    result.add("for scale: Dynamo's own overhead per call", median(dynamo), "us")
    result.notes.append(
        "Overhead: the pieces return remembered tensors, so what is left is the executor, the "
        "clock and the lanes; a bare Dynamo call of the same model is taken off."
    )
