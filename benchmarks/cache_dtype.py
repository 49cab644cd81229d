"""What narrower caches cost: the error of `cache_dtype`, on both of the demo's trained models.

    python -m benchmarks.cache_dtype             # prints a row per model, plan and dtype
    python -m benchmarks.cache_dtype --write     # and writes benchmarks/results/cache_dtype.md
    python -m benchmarks.cache_dtype --quick     # few videos: a check that it runs, no measurement

PSNR (dB) is that of the videos, with 95 % bootstrap intervals over the videos. One column compares
with the videos without reuse, one with those of the same plan and caches as computed (float32).
MiB is what one generation of all videos caches at most.

The second table says how far what attentions and MLPs return is off after float8_e4m3, relative to
its norm: with a scale per token, as the library has it, and with other scales.

The third table is of models in bfloat16. The sum of a stretch is the difference of two bfloat16
streams. It is kept in bfloat16, as the library does it, and in float32 for comparison; predictions
are then made in that type. PSNR compares with the same model in bfloat16 without reuse. `--sums`
prints this table only.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from rich.console import Console
from rich.progress import track

import pab_compile
from pab_compile.compile import lane_step
from pab_compile.runtime.kept import converted, value_of

from .examples import digits
from .quality import Score, interval

RESULTS = Path(__file__).parent / "results"
MODELS = ("latte", "joint")
PLANS: dict[str, dict[str, Any]] = {
    "`linear3`": {"ranges": "linear3"},
    "`pab246`": {"ranges": "pab246"},
}
DTYPES = (None, "bfloat16", "float16", "float8_e4m3")
FP8 = torch.float8_e4m3fn
HEAD = (
    "| model | plan | `cache_dtype` | against no reuse | against caches as computed | MiB |",
    "|---|---|---|---:|---:|---:|",
)
SUMS_HEAD = ("| model | plan | kept in bfloat16 | kept in float32 |", "|---|---|---:|---:|")
SUM_PLANS = ("linear2", "linear3", "linear5")
SCALES_HEAD = ("| model | a scale per token | per channel | per tensor |", "|---|---:|---:|---:|")


def psnr(videos: torch.Tensor, reference: torch.Tensor) -> str:
    """Mean PSNR with its interval."""
    score = Score("")
    score.add(videos, reference)
    low, high = interval(score.psnr)
    return f"{statistics.fmean(score.psnr):.1f} [{low:.1f}, {high:.1f}]"


def rows_of(name: str, num_videos: int, num_steps: int, console: Console) -> Iterable[str]:
    """The rows of a model."""
    trained = digits.load(digits.find_folder(name))
    prompts, noise = torch.arange(num_videos) % digits.NUM_DIGITS, digits.make_noise(num_videos, 1)

    def generate(model: Any = None) -> torch.Tensor:
        pab_compile.reset()
        return digits.generate(trained, prompts, noise, model=model, num_steps=num_steps)

    reference = generate()
    cases = [(plan, dtype) for plan in PLANS for dtype in DTYPES]
    exact = reference
    for plan, dtype in track(cases, description=name, console=console):
        options = {**PLANS[plan], "cache_dtype": dtype, "inner": "eager"}
        model = torch.compile(trained.model, backend="pab", options=options)
        videos = generate(model)
        exact = videos if dtype is None else exact
        mib = pab_compile.stats(model).peak_cache_bytes / 2**20
        own = "-" if dtype is None else psnr(videos, exact)
        yield f"| {name} | {plan} | {dtype} | {psnr(videos, reference)} | {own} | {mib:.2f} |"


def scaled(tensor: torch.Tensor, dims: Sequence[int]) -> torch.Tensor:
    """A tensor after float8_e4m3, with one scale for all elements along some dimensions."""
    scale = tensor.abs().amax(dim=tuple(dims), keepdim=True) / torch.finfo(FP8).max
    return (tensor / scale).to(FP8).float() * scale


def as_library(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a cache entry gives it back."""
    kept = converted(tensor, FP8)
    assert kept is not None
    return value_of(kept)


def scales_of(name: str) -> str:
    """The row of a model: mean relative errors of what its attentions and MLPs return."""
    trained = digits.load(digits.find_folder(name))
    errors: list[list[float]] = [[], [], []]

    def look(_: torch.nn.Module, __: Any, output: Any) -> None:
        for tensor in output if isinstance(output, tuple) else (output,):
            every = range(tensor.ndim)
            found = (as_library(tensor), scaled(tensor, every[:-1]), scaled(tensor, every))
            for column, values in zip(errors, found, strict=True):
                column.append(((values - tensor).norm() / tensor.norm()).item())

    handles = [
        module.register_forward_hook(look)
        for module in trained.model.modules()
        if isinstance(module, FeedForward) or type(module).__name__ == "Attention"
    ]
    digits.generate(trained, torch.arange(4), digits.make_noise(4, 1), num_steps=10)
    for handle in handles:
        handle.remove()
    return f"| {name} | " + " | ".join(f"{statistics.fmean(e):.2%}" for e in errors) + " |"


def sums_of(name: str, num_videos: int, num_steps: int, console: Console) -> Iterable[str]:
    """The rows of a model in bfloat16."""
    trained = digits.load(digits.find_folder(name))
    prompts, noise = torch.arange(num_videos) % digits.NUM_DIGITS, digits.make_noise(num_videos, 1)
    narrow = trained.model.to(torch.bfloat16)

    def generate(model: Any) -> torch.Tensor:
        def call(**inputs: Any) -> tuple[torch.Tensor, ...]:
            given = {key: _narrow(key, value) for key, value in inputs.items()}
            return tuple(output.float() for output in model(**given))

        pab_compile.reset()
        return digits.generate(trained, prompts, noise, model=call, num_steps=num_steps)

    reference = generate(narrow)
    as_library = lane_step.difference
    for plan in track(SUM_PLANS, description=name, console=console):
        cells = []
        for dtype in (None, torch.float32):
            options: dict[str, Any] = {"ranges": plan, "inner": "eager"}
            model = torch.compile(narrow, backend="pab", options=options)
            if dtype is not None:
                lane_step.difference = lambda end, start, _: as_library(end, start, torch.float32)
            try:
                cells.append(psnr(generate(model), reference))
            finally:
                lane_step.difference = as_library
        yield f"| {name} | `{plan}` | {' | '.join(cells)} |"


def _narrow(name: str, value: Any) -> Any:
    is_wide = isinstance(value, torch.Tensor) and value.is_floating_point() and name != "timestep"
    return value.to(torch.bfloat16) if is_wide else value


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_dtype", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write cache_dtype.md")
    parser.add_argument("--sums", action="store_true", help="the third table only")
    parser.add_argument("--quick", action="store_true", help="2 videos, 10 steps")
    args, console = parser.parse_args(), Console()
    if args.write and (args.quick or args.sums):
        parser.error("--quick and --sums do not measure all that is written")
    torch.compiler.config.recompile_limit = 2 * len(PLANS) * len(DTYPES)
    num_videos, num_steps = (2, 10) if args.quick else (16, 30)
    tables: list[list[str]] = [[*HEAD], [*SCALES_HEAD], [*SUMS_HEAD]]
    for name in () if args.sums else MODELS:
        for line in rows_of(name, num_videos, num_steps, console):
            tables[0].append(line)
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for name in () if args.sums else MODELS:
        tables[1].append(scales_of(name))
        console.print(tables[1][-1], markup=False, highlight=False, soft_wrap=True)
    for name in MODELS:
        for line in sums_of(name, num_videos, num_steps, console):
            tables[2].append(line)
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    settings = f"{num_videos} videos, {num_steps} steps, guidance 2, seed 1, float32."
    if args.write:
        text = "\n\n".join("\n".join(table) for table in tables)
        head = f"# What narrower caches cost\n\n{__doc__}\n{settings}\n\n"
        (RESULTS / "cache_dtype.md").write_text(f"{head}{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
