"""Benchmark `live`: a service whose requests differ in size, prompt length and level.

Three threads share one model that `enable` compiled. Every prediction is compared with hooks on the
blocks of a copy of the model (`tests/helpers/service.py`).
"""

from __future__ import annotations

import torch
from rich.progress import Progress

import pab_compile
from tests.helpers.service import (
    LENGTHS,
    RANGES,
    SIZES,
    STEPS,
    expected,
    generate,
    narrow_wan,
    requests,
    serve,
    watched,
)

from .results import Result, Target
from .timing import median

THREADS = 3
BLOCKS = 2
SAME = 1e-5
"""Relative difference of predictions that differ by rounding only."""


def run(result: Result, quick: bool, progress: Progress) -> None:
    """Serves requests, and compares what they give with hooks."""
    asked = requests(8 if quick else 40)
    inner = "eager" if quick else "inductor"
    result.settings = {
        "model": f"Wan, {BLOCKS} blocks of width 24",
        "requests": len(asked),
        "steps": STEPS,
        "sizes": len({(request.height, request.width) for request in asked}),
        "prompt lengths": len({request.words for request in asked}),
        "levels": len({request.level for request in asked}),
        "cancelled": sum(request.stop is not None for request in asked),
        "threads": THREADS,
        "inner": inner,
    }
    torch.compiler.reset()
    model = narrow_wan(BLOCKS)
    task = progress.add_task("hooks, and the model itself", total=len(asked))
    wanted, plain = [], []
    for request in asked:
        wanted.append(expected(model, request))
        plain.append(generate(lambda _, **inputs: model(**inputs)[0], request))
        progress.advance(task)
    progress.remove_task(task)
    task = progress.add_task("requests", total=len(asked))
    handle = pab_compile.enable(model, inner=inner)
    with watched() as compiled:
        given = serve(model, handle, asked, THREADS, lambda: progress.advance(task))
    progress.remove_task(task)
    handle.disable()
    errors = [_error(*pair) for pair in zip(given, wanted, strict=True)]
    unlike = [_error(*pair) for pair in zip(plain, wanted, strict=True)]
    result.add(
        "requests whose every prediction is that of hooks",
        sum(error <= SAME for error in errors),
        "requests",
        Target("==", len(asked)),
    )
    result.add("largest difference, in 1e-6 of the largest element", max(errors) * 1e6, "e-6")
    result.add("the same without reuse, median", median(unlike) * 1e6, "e-6")
    graphs = compiled.graphs.values()
    result.add("graphs of Dynamo", len(graphs), "graphs")
    result.add(
        "captures and analyses of a graph, at most",
        max(len(graph.captures) for graph in graphs),
        "times",
        Target("<=", 1),
    )
    result.add(
        "captures more, at sizes that nobody asked for: they show what follows from a size",
        compiled.num_invented,
        "captures",
    )
    result.add("sizes that a graph serves, at most", max(len(g.served) for g in graphs), "sizes")
    result.add("runs of the inner compiler", compiled.num_pieces, "pieces")
    result.add(
        "of these, pieces for one size because those for all did not fit",
        compiled.num_alone,
        "pieces",
        Target("==", 0),
    )
    for number, graph in enumerate(graphs, 1):
        result.notes.append(
            f"Graph {number}: {len(graph.served)} sizes, compiled at {'; '.join(graph.captures)}."
        )
    result.notes.append(
        "A size is that of latents and prompt. All sizes that Dynamo gives to one graph are one "
        f"size class. Hooks treat a block as one site. Sizes: {SIZES}, lengths: {LENGTHS}, levels: "
        f"{', '.join(RANGES)}."
    )


def _error(actual: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference of two rows of predictions, relative to the largest element."""
    pairs = list(zip(actual, wanted, strict=True))
    return max(((one - two).abs().max() / two.abs().max()).item() for one, two in pairs)
