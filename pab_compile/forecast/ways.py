"""Ways: in which ranks can share a generation, with the time that is predicted for each.

Ranks can share the rows of the batch (or the two calls of guidance), the tokens along one of their
axes, or both. ``choose`` in the passes compares token axes by bytes. This compares all ways by the
seconds of computation and exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pab_compile.errors import OptionError, ShardingError
from pab_compile.machine import Machine
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.placement import PACKED, packed_axis
from pab_compile.passes.parallel.split_batch import shares_calls
from pab_compile.passes.program import Program
from pab_compile.plans.schedule import Schedule
from pab_compile.report.table import table_lines
from pab_compile.report.text import ShownAsText

from .predict import options_for
from .seconds import Generation, generation_of
from .several import predict_all
from .weights import GatheredAround

RANK_OPTIONS = (
    "mesh",
    "sequence_parallel",
    "batch_mesh",
    "batch_parallel",
    "shard",
    "ring_parallel",
)
"""The options that say how ranks share a generation."""


@dataclass(frozen=True)
class Split:
    """One way to share a generation.

    Attributes:
        num_batch_ranks: ranks that share the batch or the two calls.
        num_token_ranks: ranks that share the tokens.
        axis: the axis of the tokens that they share; ``""`` for one rank, or if every graph of the
            forward has an axis of its own.
        generation: the predicted time; None if this way is impossible.
        wire_bytes: bytes that the first rank sends in a generation.
        reason: why it is impossible.
        ring: the ranks of a ring; None for rings only where heads run out.
    """

    num_batch_ranks: int
    num_token_ranks: int
    axis: str
    generation: Generation | None = None
    wire_bytes: float = 0.0
    reason: str = ""
    ring: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options of the backend for this way, on all processes of the default group."""
        found: dict[str, Any] = {}
        if self.num_token_ranks > 1:
            found = {"sequence_parallel": self.num_token_ranks}
            found |= {"shard": self.axis} if self.axis else {}
        if self.ring is not None:
            found["ring_parallel"] = self.ring
        if self.num_batch_ranks > 1:
            found["batch_parallel"] = self.num_batch_ranks
        return found

    @property
    def way(self) -> str:
        """The axis, with the rings."""
        return self.axis if self.ring is None else f"{self.axis}, in rings of {self.ring}"

    @property
    def words(self) -> str:
        """Who shares what."""
        parts = []
        if self.num_batch_ranks > 1:
            parts.append(f"{self.num_batch_ranks} ranks for the batch or the calls of a step")
        if self.num_token_ranks > 1:
            along = f"along {self.way}" if self.way else "along the best axis of each graph"
            parts.append(f"{self.num_token_ranks} ranks for the tokens {along}")
        return " x ".join(parts) or "one rank"


@dataclass(frozen=True)
class Splits(ShownAsText):
    """All ways to share a generation.

    Attributes:
        rows: those that are possible, the fastest first, then the others.
    """

    rows: tuple[Split, ...]

    @property
    def best(self) -> Split:
        """The way that takes the least time.

        Raises:
            ShardingError: none is possible; says why.
        """
        first = self.rows[0]
        if first.generation is None:
            raise ShardingError(f"So many ranks cannot share the model. {first.reason}")
        return first

    def __str__(self) -> str:
        """A table. Below it are the reasons why some ways are impossible."""
        headings = ("batch x tokens", "axis", "s", "in collectives", "MB sent")
        lines = table_lines(headings, map(_cells, self.rows), num_left=2, width=80)
        reasons = [
            f"{_name(row)}: {' '.join(row.reason.splitlines())}" for row in self.rows if row.reason
        ]
        return "\n".join((*lines, *reasons))


def ways_to_share(
    programs: Sequence[Program],
    options: Mapping[str, Any],
    num_ranks: int,
    schedule: Schedule,
    machine: Machine,
    calls: int,
    alone: bool = True,
    around: Sequence[GatheredAround] = (),
) -> Splits:
    """Predict the time of every way in which ranks can share a forward.

    Rings are tried where ranks fill more than one node, along the fastest axis: within one node
    they send more than ranks that share the heads.

    Args:
        programs: its graphs that hold attentions, each with its sites.
        options: options of the backend, without those that say how ranks share the model.
        num_ranks: number of ranks.
        schedule: the steps of a generation.
        machine: the devices.
        calls: calls of the model per step.
        alone: whether the one graph is the whole forward. Only then halves can share two calls.
        around: weights that are gathered before the forward.
    """

    def predicted(ways: Iterator[Split]) -> list[Split]:
        return [
            _split(programs, {**options, **way.options}, way, schedule, machine, calls, around)
            for way in ways
        ]

    calls_to_share = calls if alone and len(programs) == 1 else 1
    rows = predicted(_ways(programs, num_ranks, calls_to_share))
    if not any(row.generation for row in rows if row.num_token_ranks > 1):
        rows += predicted(_ways(programs, num_ranks, calls_to_share, packed=True))
    rows += predicted(_rings(rows, machine.node_size))
    return Splits(tuple(sorted(rows, key=_seconds)))


def _rings(rows: Sequence[Split], node_size: int) -> Iterator[Split]:
    """The ways in rings, with neighbours in one node that share the heads."""
    fastest: dict[tuple[int, int], Split] = {}
    for row in sorted((row for row in rows if row.generation), key=_seconds):
        fastest.setdefault((row.num_batch_ranks, row.num_token_ranks), row)
    for (num_batch, num_tokens), row in fastest.items():
        if num_tokens > node_size:
            for length in range(2, num_tokens + 1):
                if num_tokens % length == 0 and num_tokens // length <= node_size:
                    yield Split(num_batch, num_tokens, row.axis, ring=length)


def _ways(
    programs: Sequence[Program], num_ranks: int, calls: int, packed: bool = False
) -> Iterator[Split]:
    """The ways to try: with the axes of the latents, or those with the sequence as it is packed."""
    axes = dict.fromkeys(
        name for program in programs for name, _ in candidates(program.inferred_axes)
    )
    if packed:
        has_packed = [packed_axis(each.inferred_axes, each.mixers) is not None for each in programs]
        axes = {PACKED: None} if all(has_packed) else {}
    elif len(programs) > 1:
        axes[""] = None
    for num_batch in (num for num in range(1, num_ranks + 1) if num_ranks % num == 0):
        if num_batch > 1 and shares_calls(programs[0], num_batch) and calls != 2:
            continue  # a single call of a single row
        num_tokens = num_ranks // num_batch
        yield from (Split(num_batch, num_tokens, axis) for axis in axes if num_tokens > 1)
        if num_tokens == 1 and not packed:
            yield Split(num_batch, 1, "")


def _split(
    programs: Sequence[Program],
    options: Mapping[str, Any],
    way: Split,
    schedule: Schedule,
    machine: Machine,
    calls: int,
    around: Sequence[GatheredAround],
) -> Split:
    num_batch = way.num_batch_ranks
    num_ranks = num_batch * way.num_token_ranks
    try:
        parsed = options_for(options, num_ranks)
        report = predict_all(programs, parsed, num_ranks, schedule, around)
    except (ShardingError, OptionError) as error:
        return replace(way, reason=str(error))
    each = 1 if num_batch > 1 and shares_calls(programs[0], num_batch) else calls
    found = generation_of(machine, report, report.work, report.rows)
    found = Generation(each * found.compute, each * found.exchange)
    return replace(way, generation=found, wire_bytes=each * report.wire_bytes)


def _seconds(row: Split) -> float:
    return float("inf") if row.generation is None else row.generation.seconds


def _name(row: Split) -> str:
    return f"{row.num_batch_ranks} x {row.num_token_ranks}{row.way and f' along {row.way}'}"


def _cells(row: Split) -> Sequence[str]:
    name = f"{row.num_batch_ranks} x {row.num_token_ranks}"
    if row.generation is None:
        return (name, row.way, "-")
    share = row.generation.exchange / row.generation.seconds
    seconds = f"{row.generation.seconds:.3g}"
    return (name, row.way, seconds, f"{share:.1%}", f"{row.wire_bytes / 1e6:.4g}")
