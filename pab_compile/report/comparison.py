"""Comparisons of plans as users see them: numbers, a table, a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .compare_page import Compared, columns, compare_page
from .files import write_text
from .table import table_lines
from .text import ShownAsText, width, wrapped


@dataclass(frozen=True)
class Comparison(ShownAsText):
    """Plans, measured by real generations.

    Attributes:
        plans: what was measured, in the order in which they were given.
        seconds_without_reuse: median seconds of a generation of stock ``torch.compile``.
        num_prompts: how many prompts were generated with every plan.
        num_steps: of each generation.
        videos: plan -> frames of the first prompt, for the page.
        notes: what could not be measured, and why.
    """

    plans: tuple[Compared, ...]
    seconds_without_reuse: float
    num_prompts: int
    num_steps: int
    videos: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """What was run."""
        return (
            f"{self.num_prompts} prompts, {self.num_steps} steps. Quality and speed are relative "
            "to no reuse."
        )

    def to_json(self) -> dict[str, Any]:
        """All numbers, in types of JSON."""
        return {
            "steps": self.num_steps,
            "prompts": self.num_prompts,
            "seconds_without_reuse": self.seconds_without_reuse,
            "plans": [asdict(plan) for plan in self.plans],
            "notes": list(self.notes),
        }

    def to_html(self, path: str | Path | None = None, *, title: str = "") -> str:
        """A page with all numbers, and the results side by side. It needs no network.

        Args:
            path: where to write it; None only returns it.
            title: its title.
        """
        title = title or f"Pyramid Attention Broadcast: {len(self.plans)} plans"
        page = compare_page(
            title,
            self.headline,
            self.seconds_without_reuse,
            self.plans,
            self.videos,
            self.to_json(),
            self.notes,
        )
        if path is not None:
            write_text(path, page)
        return page

    def __str__(self) -> str:
        """A table that fits the terminal."""
        headings, rows = columns(self.seconds_without_reuse, self.plans)
        lines = [*wrapped(self.headline), *table_lines(headings, rows, num_left=1, width=width())]
        return "\n".join([*lines, *(line for note in self.notes for line in wrapped(note))])
