"""Measures how often a generated video shows the digit it was prompted with.

    python examples/read_digits.py
    python examples/read_digits.py --model joint
    python examples/read_digits.py --plan none third-linear --videos 50 --json outputs/read.json

A reader trained on scikit-learn's digits looks at every video. Chance is 10 %. All plans start
from the same noise, so their accuracies differ by the plan alone. The interval is Wilson's score
interval.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import digits
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from stages import Stages

from plans import NONE, plans_of


@dataclass(frozen=True)
class Score:
    """The accuracy of one plan.

    Attributes:
        plan: name of the plan.
        num_videos: number of videos read.
        num_correct: number of videos that show their prompt.
        per_digit: share of correct videos for each prompt 0 ... 9.
    """

    plan: str
    num_videos: int
    num_correct: int
    per_digit: list[float]

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.num_videos

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Returns the Wilson score interval of the accuracy."""
        n, p = self.num_videos, self.accuracy
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return middle - half, middle + half


def compile_plan(trained: digits.DigitsModel, plan: str, model: str):
    """Returns the model itself for `none`, else the model compiled with the plan."""
    if plan == NONE:
        return trained.model
    return torch.compile(trained.model, backend="pab", options=plans_of(model)[plan])


def measure(
    trained: digits.DigitsModel,
    reader: digits.Reader,
    plan: str,
    args: argparse.Namespace,
    stages: Stages,
) -> Score:
    """Generates `args.videos` videos per digit in batches and reads them."""
    model = compile_plan(trained, plan, args.model)
    prompts = torch.arange(digits.NUM_DIGITS).repeat(args.videos)
    noise = digits.make_noise(len(prompts), seed=args.seed)
    batches = list(zip(prompts.split(args.batch_size), noise.split(args.batch_size), strict=True))
    read = []
    with stages.stage(plan, len(batches) * args.steps) as advance:
        for prompt, start in batches:
            videos = digits.generate(
                trained,
                prompt,
                start,
                model=model,
                num_steps=args.steps,
                guidance=args.guidance,
                on_step=advance,
            )
            read.append(reader.read(videos))
    correct = torch.cat(read) == prompts
    per_digit = correct.view(args.videos, digits.NUM_DIGITS).double().mean(dim=0)
    return Score(plan, len(prompts), int(correct.sum()), per_digit.tolist())


def make_table(scores: list[Score]) -> Table:
    """Lays the scores out, one row per plan."""
    table = Table(title="prompt accuracy in %, overall and by digit", box=box.SIMPLE)
    for name in ("plan", "videos", "all", "95 %", *map(str, range(10))):
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
    for score in scores:
        low, high = score.interval()
        table.add_row(
            score.plan,
            str(score.num_videos),
            f"{100 * score.accuracy:.1f}",
            f"{100 * low:.0f}-{100 * high:.0f}",
            *(f"{100 * share:.0f}" for share in score.per_digit),
        )
    return table


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--plan",
        nargs="+",
        choices=[NONE, *plans_of("latte")],
        default=[NONE, "pab246", "third-linear"],
    )
    parser.add_argument("--videos", type=int, default=20, help="videos per digit")
    parser.add_argument("--batch-size", type=int, default=20, help="videos per model call")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument(
        "--model", default="latte", help="latte, joint, or a trained model's folder"
    )
    parser.add_argument("--json", type=Path, help="also write the result here")
    args = parser.parse_args()
    if args.videos * digits.NUM_DIGITS % args.batch_size:
        parser.error("--batch-size must divide 10 times --videos: every call compiles for one size")
    return args


def main() -> None:
    args, console = parse_args(), Console(width=110)
    if args.threads:
        torch.set_num_threads(args.threads)
    reader, trained = digits.train_reader(), digits.load(digits.find_folder(args.model))
    console.print(
        f"The reader reads {reader.held_out_accuracy:.1%} of clean videos of held-out digits; "
        "chance is 10 %."
    )
    with Stages(console, len(args.plan)) as stages:
        scores = [measure(trained, reader, plan, args, stages) for plan in args.plan]
    console.print(make_table(scores))
    if args.json:
        result = {
            "reader_held_out_accuracy": reader.held_out_accuracy,
            "num_steps": args.steps,
            "guidance": args.guidance,
            "seed": args.seed,
            "scores": [{**asdict(score), "accuracy": score.accuracy} for score in scores],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
