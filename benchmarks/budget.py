"""What a budget for the caches costs: the saving that is left with less memory.

    python -m benchmarks.budget                  # prints a row per model, plan and budget
    python -m benchmarks.budget --write          # and writes benchmarks/results/budget.md and .png

Latte-1 and Open-Sora 1.2 at their real sizes, in bfloat16, with one prompt. The models are
described only: no weights, no run. A budget of 100 % holds the output of every site as it was
computed. The saving is counted in operations of the sites: what their reuse saves over a
generation, relative to all that the plan would save without a limit. *auto* is
`cache_dtype="auto"`: float8_e4m3 where not everything fits. *sums* is what `linear3` does by
itself (`coalesce`).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track

import pab_compile
from pab_compile import Explanation
from pab_compile.plans.budget import Claim, chosen_or_narrowed

from . import examples  # noqa: F401  (it puts the examples on the path)
from .real_models import REAL_MODELS

RESULTS = Path(__file__).parent / "results"
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1)
PLANS: dict[str, dict[str, Any]] = {
    "PAB246": {"ranges": "pab246"},
    "linear3": {"ranges": "linear3", "coalesce": False},
}
HEAD = [
    "| model | plan | all caches, GiB | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |",
    "|---|---|---|" + "---|" * len(SHARES),
]


def latte() -> tuple[torch.nn.Module, dict[str, Any]]:
    real = REAL_MODELS["Latte-1"]
    return real.build(), real.inputs()


def open_sora() -> tuple[torch.nn.Module, dict[str, Any]]:
    """1280 x 720, 51 frames: 15 frames of 90 x 160 latents."""
    from models.open_sora import XL_2, STDiT3

    with torch.device("meta"):
        model = STDiT3(XL_2).to(torch.bfloat16).eval().requires_grad_(False)
        latents = torch.empty(1, 4, 15, 90, 160, dtype=torch.bfloat16)
        inputs = {
            "x": latents,
            "timestep": torch.empty(1),
            "y": torch.empty(1, 1, 300, 4096, dtype=torch.bfloat16),
            "fps": torch.empty(1),
            "height": torch.empty(1),
            "width": torch.empty(1),
        }
    return model, inputs


MODELS = {"Latte-1, 512x512, 16 frames": latte, "Open-Sora 1.2, 1280x720, 51 frames": open_sora}


def claims_in(found: Explanation, narrow: Explanation) -> list[Claim]:
    """What every site that is reused would cache, as computed and narrowed."""
    return [
        Claim(site.name, site.cache_bytes, site.flops * (1 - 1 / site.range), other.cache_bytes)
        for site, other in zip(found.sites, narrow.sites, strict=True)
        if site.range is not None and site.range > 1
    ]


def left_savings(claims: list[Claim], narrows: bool) -> list[float]:
    """For every budget the share of the saving that is left."""
    whole, saving = sum(c.num_bytes for c in claims), sum(c.saved for c in claims)
    left = []
    for share in SHARES:
        kept, _ = chosen_or_narrowed(claims, int(share * whole), 1, narrows)
        left.append(sum(claims[n].saved for n in kept) / saving)
    return left


def draw(curves: dict[str, list[float]]) -> None:
    """The saving that is left against the budget."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, left in curves.items():
        axes.plot(
            [100 * share for share in SHARES], [100 * each for each in left], "o-", label=name
        )
    axes.plot([0, 100], [0, 100], ":", color="grey", label="in proportion")
    axes.set(xlabel="budget, % of all caches", ylabel="saving that is left, %")
    axes.set(xlim=(0, 102), ylim=(0, 102))
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "budget.png", dpi=110)


def main(given: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budget", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write budget.md and budget.png")
    args = parser.parse_args(given)
    console = Console()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines, curves = [], {}
    cases = [(model, plan) for model in MODELS for plan in PLANS]
    for model, plan in track(cases, description="plans", console=console):
        torch.compiler.reset()
        module, inputs = MODELS[model]()
        found, narrow = (
            pab_compile.explain(module, options={**PLANS[plan], "cache_dtype": dtype}, **inputs)
            for dtype in (None, "float8_e4m3")
        )
        claims = claims_in(found, narrow)
        whole = sum(claim.num_bytes for claim in claims)
        rows = {
            plan: (whole, left_savings(claims, narrows=False)),
            f"{plan}, auto": (whole, left_savings(claims, narrows=True)),
        }
        if plan == "linear3":
            one = pab_compile.explain(module, options={"ranges": plan}, **inputs).cache_bytes
            rows[f"{plan}, sums"] = (one, [float(share * whole >= one) for share in SHARES])
        for name, (needed, left) in rows.items():
            curves[f"{model.split(',')[0]}, {name}"] = left
            cells = " | ".join(f"{share:.0%}" for share in left)
            lines.append(f"| {model} | {name} | {needed / 2**30:.2f} | {cells} |")
            console.print(lines[-1], markup=False, highlight=False, soft_wrap=True)
    if args.write:
        text = f"# What a budget for the caches costs\n\n{__doc__}\n![curves](budget.png)\n\n"
        (RESULTS / "budget.md").write_text(text + "\n".join([*HEAD, *lines]) + "\n")
        draw(curves)


if __name__ == "__main__":
    main()
