"""Trains one of the small models of the examples on moving digits.

    python examples/train_digits.py --minutes 90
    python examples/train_digits.py --model joint --minutes 90
    python examples/train_digits.py --model deep --minutes 90 --lr 1.5e-3 --compile
    python examples/train_digits.py --minutes 90 --resume    # after an interruption

Every few minutes, and when interrupted with Ctrl-C, it writes a checkpoint to continue from
and exports the averaged weights with the loss curve to the model's folder (`digits_latte/`).

The recipe: AdamW with warm-up and a cosine decay that ends with the budget, gradient clipping,
logit-normal times (Esser et al. 2024), 10 % of the prompts dropped, averaged (EMA) weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import digits
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PROMPT_DROPOUT = 0.1
WARMUP_STEPS = 100
EMA_DECAY = 0.999
LOSS_EVERY = 20


@dataclass
class History:
    """What a run has done so far.

    Attributes:
        num_steps: updates made.
        seconds: wall-clock seconds spent on them.
        losses: `[step, mean loss since the last entry]`, one entry every 20 updates.
        accuracies: `[step, prompt accuracy]`, one entry per check.
    """

    num_steps: int = 0
    seconds: float = 0.0
    losses: list[list[float]] = field(default_factory=list)
    accuracies: list[list[float]] = field(default_factory=list)


class Trainer:
    """Holds the model, its averaged copy, the optimizer and the history of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.data = digits.load_digit_images()
        self.prompts = digits.make_prompt_table()
        self.family = digits.FAMILIES[args.model]
        self.model = self.family.cls(**self.family.config).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99)
        )
        self.history = History()
        if args.resume:
            self.restore()
        self.forward = torch.compile(self.model) if args.compile else self.model

    @property
    def checkpoint(self) -> Path:
        return self.args.work / "checkpoint.pt"

    def restore(self) -> None:
        """Continues where the last checkpoint stopped."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.history = History(**state["history"])

    def save(self) -> None:
        """Writes the checkpoint, the exported model, the history and the loss curve."""
        self.args.work.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "history": asdict(self.history),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)
        digits.save(self.args.out, self.ema, self.prompts)
        (self.args.out / "training.json").write_text(json.dumps(self.report(), indent=1) + "\n")
        plot_losses(self.history, self.args.model, self.args.out / "loss.png")

    def report(self) -> dict[str, object]:
        """Returns what is worth knowing about the exported weights."""
        return {
            "num_steps": self.history.num_steps,
            "minutes": round(self.history.seconds / 60, 1),
            "batch_size": self.args.batch_size,
            "seed": self.args.seed,
            "num_parameters": sum(p.numel() for p in self.model.parameters()),
            "final_loss": self.history.losses[-1][1] if self.history.losses else None,
            "accuracies": self.history.accuracies,
        }

    def progress(self) -> float:
        """Returns the share of the budget that is used up, between 0 and 1."""
        if self.args.steps:
            return min(1.0, self.history.num_steps / self.args.steps)
        return min(1.0, self.history.seconds / (60 * self.args.minutes))

    def update(self) -> torch.Tensor:
        """Makes one update and returns its loss."""
        step = self.history.num_steps
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * warm * (1 + math.cos(math.pi * self.progress())) / 2
        video, label = self.data.sample(self.args.batch_size)
        dropped = torch.rand(len(label)) < PROMPT_DROPOUT
        prompt = self.prompts[torch.where(dropped, digits.NO_PROMPT, label)]
        level = torch.sigmoid(torch.randn(len(label)))
        noise = torch.randn_like(video)
        mixed = torch.lerp(video, noise, level.view(-1, 1, 1, 1, 1))
        velocity = self.family.velocity(self.forward, mixed, 1000 * level, prompt)
        loss = (velocity - (noise - video)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.history.num_steps = step + 1
        self.average(min(EMA_DECAY, (step + 1) / (step + 10)))
        return loss.detach()

    @torch.no_grad()
    def average(self, decay: float) -> None:
        """Moves the averaged weights towards the current ones."""
        pairs = zip(self.ema.parameters(), self.model.parameters(), strict=True)
        for averaged, current in pairs:
            averaged.lerp_(current, 1 - decay)

    def accuracy(self, reader: digits.Reader, num_videos: int = 50) -> float:
        """Returns the share of generated videos that show the prompted digit."""
        scheduler = digits.make_scheduler()
        trained = digits.DigitsModel(self.ema, self.family, self.prompts, scheduler)
        prompts = torch.arange(num_videos) % digits.NUM_DIGITS
        videos = digits.generate(trained, prompts, digits.make_noise(num_videos), num_steps=20)
        return (reader.read(videos) == prompts).double().mean().item()


def plot_losses(history: History, model: str, path: Path) -> None:
    """Draws the loss of every 20 updates and its running mean."""
    if not history.losses:
        return
    steps, losses = zip(*history.losses, strict=True)
    smooth, mean = [], losses[0]
    for loss in losses:
        mean += 0.1 * (loss - mean)
        smooth.append(mean)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(steps, losses, alpha=0.3, label=f"mean of {LOSS_EVERY} updates")
    axes.plot(steps, smooth, label="running mean")
    axes.set(xlabel="update", ylabel="loss", yscale="log", title=f"{model} on moving digits")
    axes.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def train(trainer: Trainer, reader: digits.Reader) -> None:
    """Updates until the budget is used up; saves and measures on the way."""
    args, history = trainer.args, trainer.history
    next_save = history.seconds + 60 * args.save_minutes
    next_check = history.seconds + 60 * args.check_minutes
    recent: list[torch.Tensor] = []
    columns = (TextColumn("update {task.fields[step]}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as bar:
        task = bar.add_task("training", total=1.0, step=history.num_steps, loss=math.nan)
        last = time.perf_counter()
        while trainer.progress() < 1:
            recent.append(trainer.update())
            now = time.perf_counter()
            history.seconds, last = history.seconds + now - last, now
            if len(recent) == LOSS_EVERY:
                loss = torch.stack(recent).mean().item()
                history.losses.append([history.num_steps, round(loss, 5)])
                recent.clear()
                bar.update(task, loss=loss)
                if len(history.losses) % 5 == 0:
                    minutes = history.seconds / 60
                    bar.console.print(
                        f"update {history.num_steps}  {minutes:.1f} min  loss {loss:.4f}"
                    )
            bar.update(task, completed=trainer.progress(), step=history.num_steps)
            if history.seconds >= next_check:
                next_check = history.seconds + 60 * args.check_minutes
                accuracy = trainer.accuracy(reader)
                history.accuracies.append([history.num_steps, accuracy])
                bar.console.print(f"update {history.num_steps}  prompt accuracy {accuracy:.0%}")
            if history.seconds >= next_save:
                next_save = history.seconds + 60 * args.save_minutes
                trainer.save()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=digits.FAMILIES, default="latte")
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget")
    parser.add_argument("--steps", type=int, help="number of updates, in place of --minutes")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="time between saves")
    parser.add_argument("--check-minutes", type=float, default=15.0, help="time between checks")
    parser.add_argument("--out", type=Path, help="exported model (default: the example's folder)")
    parser.add_argument("--work", type=Path, help="checkpoint (default: outputs/train_MODEL)")
    args = parser.parse_args()
    args.out = args.out or digits.FAMILIES[args.model].folder
    args.work = args.work or Path(f"outputs/train_{args.model}")
    return args


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    reader = digits.train_reader()
    trainer = Trainer(args)
    try:
        train(trainer, reader)
        trainer.save()
        print("budget used up; reading 200 videos (Ctrl-C leaves this out)")
        accuracy = trainer.accuracy(reader, num_videos=200)
        trainer.history.accuracies.append([trainer.history.num_steps, accuracy])
        print(f"prompt accuracy {accuracy:.1%} over 200 videos (chance 10 %)")
    except KeyboardInterrupt:
        print("interrupted; --resume continues where this stops")
    trainer.save()
    print(f"{trainer.history.num_steps} updates exported to {args.out}")


if __name__ == "__main__":
    main()
