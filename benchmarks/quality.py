"""Quality against speed: many plans, the same videos, on one of the demo's trained models.

    python -m benchmarks.quality
    python -m benchmarks.quality --model joint
    python -m benchmarks.quality --quick      # few videos: a check that it runs, no measurement
    python -m benchmarks.quality --plans linear3 "linear3, whole output"    # these; writes no files
    python -m benchmarks.quality --plans "tuned, 7 of 30" --update          # replaces their rows

Every plan generates the same videos from the same noise. In turns, batch by batch, so that a
machine's drift meets all plans alike: the speed is the median over the batches of the ratio to
stock `torch.compile` in the same turn. What every plan has to beat is no reuse at fewer steps, with
the model's own sampler or with one of second order, so that is there too. Against the videos of the
model without any reuse:

- PSNR (dB, at most 100) and SSIM of the frames (scikit-image);
- motion error: ``|d - d_ref| / |d_ref|`` for the differences ``d`` of successive frames, 0 is best;
- read: how often a reader sees the prompted digit (not a comparison: the model itself misses some).

A second table has, beside every method that is not ours, the fastest plan of ours that is at least
as near to the reference on the mean. `cache-dit` has rows if it is installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

import pab_compile

from .examples import digits, solvers
from .quality_hooks import HOOKED, Other
from .quality_plans import PLANS
from .quality_score import (
    EQUAL_HEADERS,
    HEADERS,
    STOCK,
    Score,
    as_good,
    cells,
    markdown,
    plot,
)
from .results import RESULTS_DIR, versions
from .workers import Worker

FEWER = (20, 15, 10)
SECOND_ORDER = (15, 10, 7)
"""Of 30 steps, as many as are taken without reuse."""


def _fewer() -> tuple[dict[str, int], dict[str, int]]:
    """Rows without reuse, by the sampler of the model and by the one of second order."""
    names = {f"no reuse, {n} steps": n for n in FEWER}
    return names, {f"no reuse, {n} steps, Adams-Bashforth 2": n for n in SECOND_ORDER}


def measure(args: argparse.Namespace, console: Console) -> list[Score]:
    """Generate every batch with every plan in turns."""
    plans = {name: p for name, p in PLANS[args.model].items() if name in (args.plans or [name])}
    # Dynamo keeps the code of all plans at the model's one forward.
    torch.compiler.config.recompile_limit = 2 * len(plans)
    trained, reader = digits.load(digits.find_folder(args.model)), digits.train_reader()
    calls: dict[str, Callable[..., Any]] = {STOCK: torch.compile(trained.model)}
    for name, options in plans.items():
        calls[name] = torch.compile(trained.model, backend="pab", options=options)
    others = {} if args.plans else {n: Worker(Other, (args.model, n)) for n in HOOKED[args.model]}
    fewer, second = (
        {name: round(n * args.steps / 30) for name, n in names.items()} for names in _fewer()
    )
    calls |= dict.fromkeys([*fewer, *second], calls[STOCK])
    solved = replace(trained, scheduler=solvers.AdamsBashforth())
    scores = {name: Score(name, ours=name in plans) for name in (*calls, *others)}
    prompts = torch.arange(args.videos) % digits.NUM_DIGITS
    noise = digits.make_noise(args.videos, seed=args.seed)
    batches = list(zip(prompts.split(args.batch), noise.split(args.batch), strict=True))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        total = len(scores) * (len(batches) + 1)
        task = bar.add_task("generations", total=total)

        def generate(name: str, batch: tuple[torch.Tensor, torch.Tensor]) -> Any:
            bar.update(task, description=name)
            if name in others:
                shown, noise = (tensor.numpy() for tensor in batch)
                videos, seconds = others[name].ask((shown, noise, args.steps))
                bar.advance(task)
                return torch.from_numpy(videos), seconds
            pab_compile.reset()
            start = time.perf_counter()
            num_steps = {**fewer, **second}.get(name, args.steps)
            sampled = solved if name in second else trained
            videos = digits.generate(sampled, *batch, model=calls[name], num_steps=num_steps)
            bar.advance(task)
            return videos, time.perf_counter() - start

        for name in scores:  # compiles
            generate(name, batches[0])
        for batch in batches:
            seconds = {}
            reference = torch.empty(0)
            for name, score in scores.items():
                videos, seconds[name] = generate(name, batch)
                reference = videos if name == STOCK else reference
                score.add(videos, reference)
                score.read += (reader.read(videos) == batch[0]).tolist()
                score.speed.append(seconds[STOCK] / seconds[name])
    for worker in others.values():
        worker.close()
    for name in plans:
        scores[name].cache_bytes = pab_compile.stats(calls[name]).peak_cache_bytes  # type: ignore[arg-type]
    return list(scores.values())


def updated(scores: list[Score], model: str, videos: str) -> list[Score]:
    """The scores of an earlier run of the same videos, with these in their place.

    Rows of plans that are no more are left out.
    """
    content = json.loads((RESULTS_DIR / f"quality_{model}.json").read_text())
    if not content["settings"].startswith(videos):
        raise SystemExit(f"The files are of other videos than {videos!r}: run it without --update.")
    known = [STOCK, *PLANS[model], *HOOKED[model], *(name for names in _fewer() for name in names)]
    earlier = {score["plan"]: Score(**score) for score in content["scores"]}
    rows = earlier | {score.plan: score for score in scores}
    return [rows[name] for name in known if name in rows]


def write(scores: list[Score], model: str, settings: str) -> list[Path]:
    """Tables, numbers and picture."""
    rows = markdown(HEADERS, map(cells, scores))
    equal = markdown(EQUAL_HEADERS, as_good(scores))
    paths = [RESULTS_DIR / f"quality_{model}.{end}" for end in ("md", "json", "png")]
    title = f"### quality_{model}"
    paths[0].write_text("\n\n".join([title, rows, "At equal quality:", equal, settings]) + "\n")
    content = {"settings": settings, "scores": [asdict(score) for score in scores]}
    paths[1].write_text(json.dumps(content) + "\n")
    plot(scores, paths[2])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=PLANS, default="latte")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="4 videos, 10 steps; writes no files")
    parser.add_argument("--plans", nargs="+", metavar="NAME", help="these plans; writes no files")
    parser.add_argument("--update", action="store_true", help="write them to the files")
    args, console = parser.parse_args(), Console()
    if unknown := set(args.plans or ()).difference(PLANS[args.model]):
        parser.error(f"no plan is called {sorted(unknown)[0]!r}; known: {list(PLANS[args.model])}")
    if args.quick:
        args.videos, args.batch, args.steps = 4, 2, 10
    scores = measure(args, console)
    for headers, rows in (
        (HEADERS, map(cells, scores)),
        (EQUAL_HEADERS, as_good(scores)),
    ):
        table = Table(*(Column(header, no_wrap=True) for header in headers), box=box.SIMPLE)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    videos = (
        f"{args.videos} videos of {args.model} in batches of {args.batch}, {args.steps} steps, "
        f"guidance 2, seed {args.seed}. "
    )
    chosen = [f'"{name}"' for name in args.plans or ()]
    command = (
        f"python -m benchmarks.quality --model {args.model} --videos {args.videos} --batch "
        f"{args.batch} --steps {args.steps} --seed {args.seed}"
    )
    command = " ".join([command, *(["--plans", *chosen] if chosen else [])])
    said = f"Rows are of several runs, the last one: {command} --update" if args.update else command
    settings = f"{videos}Command: {said}. Versions: {used}"
    console.print(settings, highlight=False)
    if args.update:
        scores = updated(scores, args.model, videos)
    if not args.quick and (args.update or not args.plans):
        paths = write(scores, args.model, settings)
        console.print(f"wrote {', '.join(map(str, paths))}")


if __name__ == "__main__":
    main()
