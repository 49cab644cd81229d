"""Runs a small model with a published setting and holds it to the reference's step counts.

What the examples `open_sora.py`, `open_sora_plan.py` and `latte.py` share.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from stages import Stages

import pab_compile


@dataclass(frozen=True)
class Setting:
    """A published setting of Pyramid Attention Broadcast.

    Attributes:
        preset: its name in `pab_compile`.
        ranges: kind -> compute every so many steps.
        window: timesteps between which outputs are reused, both bounds exclusive.
        cut: where the authors' code caches: after the timestep's gate, or before it.
        steps: steps of a generation.
        computed: kind -> computed steps, where they are published for this many steps.
    """

    preset: str
    ranges: Mapping[str, int]
    window: tuple[int, int]
    cut: str
    steps: int
    computed: Mapping[str, int] | None = None

    def computed_steps(self, timesteps: Sequence[float]) -> dict[str, int]:
        """Kind -> computed steps by the rule.

        A step reuses if its number is no multiple of the range and its timestep lies inside the
        window. The number counts calls of the model, also those that repeat a timestep.
        """
        low, high = self.window
        inside = [low < timestep < high for timestep in timesteps]
        return {
            kind: sum(step % every == 0 or not inside[step] for step in range(len(timesteps)))
            for kind, every in self.ranges.items()
        }

    def compile(self, model: torch.nn.Module, inner: str) -> Any:
        """The model with this setting."""
        options = {"ranges": self.preset, "cut": self.cut, "inner": inner}
        return torch.compile(model.eval().requires_grad_(False), backend="pab", options=options)


def parser(doc: str, setting: Setting) -> argparse.ArgumentParser:
    """Options of every example."""
    found = argparse.ArgumentParser(description=doc.split("\n")[0])
    found.add_argument("--steps", type=int, default=setting.steps)
    found.add_argument("--inner", default="eager", help="compiler of the pieces, or inductor")
    return found


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Says that a generation runs; yields what to call after every call of the model."""
    with Stages(Console(), 1) as stages, stages.stage(f"{label}, {total} calls", total) as advance:
        yield advance


def report(compiled: Any, setting: Setting, timesteps: Sequence[float]) -> int:
    """Print what was computed beside the reference.

    Args:
        compiled: the model, after a generation.
        setting: what it ran with.
        timesteps: of all calls, as the reference's window sees them.

    Returns:
        0 if all numbers agree, else 1.
    """
    stats, console = pab_compile.stats(compiled), Console(highlight=False)
    by_rule = setting.computed_steps(timesteps)
    agree = stats.computed_steps == by_rule and stats.calls == len(timesteps)
    console.print(f"{stats.calls} calls of the model; computed steps, preset {setting.preset!r}:")
    for kind, count in by_rule.items():
        line = f"  {kind:<9} {stats.computed_steps.get(kind, 0):>4}   by the rule {count}"
        if setting.computed is not None and len(timesteps) == setting.steps:
            agree &= setting.computed[kind] == count
            line += f", published {setting.computed[kind]}"
        console.print(line)
    kinds, patterns = "/".join(stats.kinds), sorted(set(stats.patterns))
    console.print(f"  {len(patterns)} patterns ({kinds}): {' '.join(patterns)}", markup=False)
    for note in stats.notes:
        console.print(f"  note: {note}", markup=False)
    console.print("as the reference" if agree else "NOT as the reference")
    return 0 if agree else 1


def guided(unconditional: torch.Tensor, conditional: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance."""
    return unconditional + scale * (conditional - unconditional)
