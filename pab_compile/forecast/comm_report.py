"""The report of ``comm``: what ranks exchange in one generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pab_compile.report.table import table_lines
from pab_compile.report.text import ShownAsText

if TYPE_CHECKING:
    import sympy


@dataclass(frozen=True)
class CommRow:
    """What equal sites exchange in a generation.

    Attributes:
        what: the kind of the sites, or another name. ``weights`` for gathers of weights.
        along: the axis that is sharded in the sites.
        num_sites: number of such sites.
        collectives: number of all-to-alls (or gathers) of one site at a step that computes it.
        computed_steps: number of steps at which the plan computes the sites.
        convention_bytes: bytes per rank and generation, as the papers count: ``M / N`` for a
            re-sharded tensor of ``M`` bytes. Gathers do not count.
        wire_bytes: bytes that rank 0 sends to other ranks.
        formula: ``convention_bytes`` in closed form. ``N`` is the number of ranks.
        neighbours: number of successive ranks that exchange this; 0 for all.
        is_passed_on: whether every rank sends it to the next one of its ring.
    """

    what: str
    along: str
    num_sites: int
    collectives: int
    computed_steps: float
    convention_bytes: float
    wire_bytes: float
    formula: sympy.Expr
    neighbours: int = 0
    is_passed_on: bool = False


@dataclass(frozen=True)
class Work:
    """Floating point operations of a generation, on the rank with the most of them.

    Attributes:
        shared: those of ops of which every rank computes a part.
        replicated: those of ops that every rank computes in full.
    """

    shared: float
    replicated: float

    @property
    def flops(self) -> float:
        """All floating point operations."""
        return self.shared + self.replicated


@dataclass(frozen=True)
class CommReport(ShownAsText):
    """What the ranks exchange in one generation, with a plan and without reuse.

    Attributes:
        axis: the sharded axis; ``""`` if each rank has all tokens of its batch rows.
        num_ranks: number of ranks that share the tokens.
        num_batch_ranks: number of ranks that share the rows of the batch.
        num_steps: steps of the generation (calls of the model).
        rows: what is exchanged with the plan.
        always: the same if every site computes at every step.
        never: the same if no site ever computes.
        work: what a rank computes with the plan.
        work_always: the same if every site computes at every step.
        computed: number of computations of sites with the plan: sites times steps.
        reasons: why this axis was chosen, in lines.
    """

    axis: str
    num_ranks: int
    num_batch_ranks: int
    num_steps: int
    rows: tuple[CommRow, ...]
    always: tuple[CommRow, ...]
    never: tuple[CommRow, ...]
    work: Work
    work_always: Work
    computed: float
    reasons: tuple[str, ...]

    @property
    def convention_bytes(self) -> float:
        """Bytes per rank and generation with the plan, as the papers count."""
        return sum(row.convention_bytes for row in self.rows)

    @property
    def convention_bytes_without_reuse(self) -> float:
        """The same if every site computes at every step."""
        return sum(row.convention_bytes for row in self.always)

    @property
    def wire_bytes(self) -> float:
        """Bytes that rank 0 sends to other ranks in a generation, with the plan."""
        return sum(row.wire_bytes for row in self.rows)

    @property
    def num_collectives(self) -> float:
        """Collectives of a generation, with the plan."""
        return sum(row.num_sites * row.collectives * row.computed_steps for row in self.rows)

    @property
    def formula(self) -> sympy.Expr:
        """Bytes per rank and generation in closed form, as the papers count."""
        import sympy

        return sympy.Add(*(row.formula for row in self.rows))

    def __str__(self) -> str:
        """A table with totals."""
        headings = ("sites", "along", "collectives", "steps", "GB", "GB on the wire", "formula")
        rows = [
            (
                f"{row.num_sites} {row.what}",
                row.along,
                str(row.collectives),
                f"{row.computed_steps:g}",
                f"{row.convention_bytes / 1e9:.3f}",
                f"{row.wire_bytes / 1e9:.3f}",
                str(row.formula),
            )
            for row in self.rows
        ]
        lines = table_lines(headings, rows, title=self.reasons[0])
        lines += self.reasons[1:]
        without = self.convention_bytes_without_reuse
        lines.append(
            f"per rank and generation: {self.num_collectives:g} collectives, "
            f"{self.convention_bytes / 1e9:.3f} GB ({without / 1e9:.3f} without reuse), "
            f"{self.wire_bytes / 1e9:.3f} GB on the wire"
        )
        return "\n".join(lines)
