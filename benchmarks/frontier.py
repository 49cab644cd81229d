"""What is best at equal cost: tuned plans, presets, or fewer steps with any solver.

    python -m benchmarks frontier                          # both of the demo's models
    python -m benchmarks frontier --models joint --computed 10
    python -m benchmarks frontier --quick                  # one model, one cost; writes no files

The models are the demo's (moving digits). Their own sampler is Euler with 30 steps and guidance 2.
Every row costs the same number of model calls. The PSNR is that of held-out videos with noise of
their own, against two references: the sampler's own 30 steps, and the converged solution (the same
noise, Adams-Bashforth 2 with 120 steps). A tuned plan runs as users run it, by the backend.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from rich.console import Console

import pab_compile
from pab_compile.tuning.score import Score, psnr

from .examples import digits
from .results import RESULTS_DIR, versions

STEPS = 30
MORE_STEPS = 120
GUIDANCE = 2.0
HELD_OUT_SEED = 10_000
NUM_DIGITS = 10

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def guided(trained: Any, prompts: torch.Tensor, model: Any) -> Velocity:
    """The velocity at a timestep, with guidance in one call."""
    embedded = trained.embed(prompts)

    def velocity(video: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        both = torch.cat([video, video])
        times = timestep.expand(len(both))
        free, prompted = trained.family.velocity(model, both, times, embedded).chunk(2)
        return free + GUIDANCE * (prompted - free)

    return velocity


@torch.no_grad()
def adams_bashforth(velocity: Velocity, noise: torch.Tensor, num_steps: int) -> torch.Tensor:
    """The solver of second order that reads the last velocity too; even steps."""
    video, last = noise, None
    levels = torch.linspace(1, 0, num_steps + 1)
    for level in levels[:-1]:
        now = velocity(video, 1000 * level)
        video = video - (1.5 * now - 0.5 * (now if last is None else last)) / num_steps
        last = now
    return video.clamp(-1, 1)


@torch.no_grad()
def scheduled(scheduler: Any, velocity: Velocity, noise: torch.Tensor, num_steps: int) -> Any:
    """A scheduler of diffusers."""
    scheduler.set_timesteps(num_steps)
    video = noise
    for timestep in scheduler.timesteps:
        now = velocity(video, timestep.to(torch.float32))
        video = scheduler.step(now, timestep, video).prev_sample
    return video.clamp(-1, 1)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 1.0}
SOLVERS: dict[str, Callable[[Velocity, torch.Tensor, int], torch.Tensor]] = {
    "Adams-Bashforth 2": adams_bashforth,
    "DPM++ 2M": lambda v, x, n: scheduled(DPMSolverMultistepScheduler(**FLOW), v, x, n),
    "UniPC 2": lambda v, x, n: scheduled(UniPCMultistepScheduler(**FLOW), v, x, n),
}
PRESETS = {"linear2": 16, "linear3": 12, "linear4": 10, "linear5": 8}


class Family:
    """A model of the demo, its held-out videos, and what they should be."""

    def __init__(self, name: str, held_out: int) -> None:
        self.name = name
        self.trained = digits.load(digits.find_folder(name))
        self.prompts = torch.arange(held_out) % NUM_DIGITS
        self.noise = digits.make_noise(held_out, HELD_OUT_SEED)
        own = guided(self.trained, self.prompts, self.trained.model)
        self.own = own
        self.references = {
            "30 steps": self.euler(STEPS),
            "converged": adams_bashforth(own, self.noise, MORE_STEPS),
        }

    def euler(self, num_steps: int, model: Any = None) -> torch.Tensor:
        """The demo's own sampler."""
        return digits.generate(
            self.trained, self.prompts, self.noise, model=model, num_steps=num_steps
        )

    def generate(self, seed: int, num_steps: int) -> torch.Tensor:
        """One video for ``tune``. With more steps than usual it is the converged one."""
        prompt, noise = torch.tensor([seed % NUM_DIGITS]), digits.make_noise(1, seed)
        if num_steps > STEPS:
            return adams_bashforth(
                guided(self.trained, prompt, self.trained.model), noise, num_steps
            )
        return digits.generate(self.trained, prompt, noise, num_steps=num_steps)

    def tuned(self, computed: int, teacher: str, prompts: int) -> Any:
        """A plan that is fitted on videos of other noise."""
        return pab_compile.tune(
            self.generate,
            range(prompts + 1),
            model=self.trained.model,
            num_steps=STEPS,
            computed=computed,
            teacher=teacher,  # type: ignore[arg-type]
            held_out=1,
        )

    def with_plan(self, options: dict[str, Any]) -> torch.Tensor:
        """The held-out videos by the backend."""
        torch.compiler.reset()
        pab_compile.reset()
        options = {"inner": "eager", **options}
        return self.euler(STEPS, torch.compile(self.trained.model, backend="pab", options=options))

    def score(self, videos: torch.Tensor) -> dict[str, Score]:
        """PSNR against both references."""
        return {
            name: Score.of([psnr(v, r) for v, r in zip(videos, reference, strict=True)])
            for name, reference in self.references.items()
        }


Row = tuple[str, dict[str, Score]]


def measure(family: Family, computed: int, prompts: int, console: Console) -> list[Row]:
    """The rows of one cost."""
    rows: list[Row] = [("fewer steps, Euler", family.score(family.euler(computed)))]
    for name, solve in SOLVERS.items():
        videos = solve(family.own, family.noise, computed)
        rows.append((f"fewer steps, {name}", family.score(videos)))
    for name, count in PRESETS.items():
        if count == computed:
            rows.append((f"preset {name}", family.score(family.with_plan({"ranges": name}))))
    for teacher in ("same", "converged"):
        tuned = family.tuned(computed, teacher, prompts)
        videos = family.with_plan({"plan": tuned})
        took = f"{tuned.full_generations:.0f} generations"
        rows.append((f"tuned to {teacher} ({took})", family.score(videos)))
        console.print(f"  {family.name}, {computed} of {STEPS}: {rows[-1][0]}", highlight=False)
    return rows


def lines_of(family: str, computed: int, rows: list[Row]) -> list[str]:
    """A table in Markdown. The best of each column is bold."""
    names = list(rows[0][1])
    best = {name: max(score[name].mean for _, score in rows) for name in names}
    lines = [f"### {family}, {computed} of {STEPS} steps compute", ""]
    lines.append(f"| each costs {computed} steps | to its {names[0]}, dB | to {names[1]}, dB |")
    lines.append("|---|---:|---:|")
    for label, scores in rows:
        cells = [
            f"**{scores[name]}**" if scores[name].mean == best[name] else str(scores[name])
            for name in names
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks frontier", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--models", nargs="+", choices=list(digits.FAMILIES), default=["joint", "latte"]
    )
    parser.add_argument("--computed", nargs="+", type=int, default=[15, 10, 7])
    parser.add_argument("--held-out", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=8, help="videos to fit on")
    parser.add_argument("--quick", action="store_true", help="one cost, few videos; no files")
    args, console = parser.parse_args(given), Console()
    if args.quick:
        args.models, args.computed, args.held_out, args.prompts = ["joint"], [10], 8, 3
    lines: list[str] = []
    for name in args.models:
        family = Family(name, args.held_out)
        for computed in args.computed:
            lines += lines_of(name, computed, measure(family, computed, args.prompts, console))
            if not args.quick:
                write(lines, args)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write(lines: list[str], args: argparse.Namespace) -> None:
    """What was measured so far."""
    used = ", ".join(f"{name} {number}" for name, number in versions().items())
    command = (
        f"python -m benchmarks frontier --models {' '.join(args.models)} --computed "
        f"{' '.join(map(str, args.computed))} --held-out {args.held_out} --prompts {args.prompts}"
    )
    head = ["# Tuned plans, presets and fewer steps at equal cost", ""]
    head += ["Mean PSNR of held-out videos, with the half-width of its 95 % interval.", ""]
    head += [f"Printed by `{command}`. {used}.", ""]
    (RESULTS_DIR / "frontier.md").write_text("\n".join([*head, *lines]).rstrip() + "\n")


if __name__ == "__main__":
    main()
