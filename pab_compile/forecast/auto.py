"""``shard="auto"``: ranks choose, before they compile, how they share a generation.

Every rank predicts the time of all ways from its own graph. The graphs are equal, and so are the
predictions; the ranks compare them before they follow one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from pab_compile.auto_split import AutoSplit
from pab_compile.compile.analysis import analyse
from pab_compile.compile.parts import captured_part
from pab_compile.compile.request import Request
from pab_compile.compile.settings import Settings
from pab_compile.errors import RanksError, ShardingError
from pab_compile.options import Options, read_options
from pab_compile.passes.program import Program
from pab_compile.plans.plan import Plan
from pab_compile.plans.share import assumed_schedule
from pab_compile.ranks.groups import OwnGroups
from pab_compile.ranks.mesh import RankAxis, peers_of, ranks_for
from pab_compile.ranks.team import Team, team_of
from pab_compile.ranks.watch import Doing
from pab_compile.ranks.words import CALL, COMPILES, PROGRAM, SIZES, sizes_of
from pab_compile.report.dump import Dumper

from .ways import Splits, ways_to_share

_log = logging.getLogger(__name__)
_PARALLEL = ("mesh", "sequence_parallel", "batch_mesh", "batch_parallel", "shard")


@dataclass(frozen=True)
class _Choice:
    """What the ranks of a team chose for one ``torch.compile`` call."""

    compilation: object
    options: Options
    lines: tuple[str, ...]


def with_chosen_split(request: Request, settings: Settings) -> Settings:
    """The settings of a compilation, with the way to share that its ranks agreed on.

    It is chosen at the first graph, and holds for all others and for all sizes.

    Args:
        request: the graph that is compiled first.
        settings: those that the user gave, with ``shard="auto"``.

    Raises:
        RanksError: there is no process group, or the ranks differ.
        ShardingError: the forward breaks into graphs, or the ranks cannot share the model.
    """
    options = settings.options
    ranks = ranks_for(options.mesh)
    if len(ranks) == 1:
        _log.info("shard='auto': there is one process, so nothing is shared")
        return replace(settings, options=_shared_by(options, ranks, 0, 1, 1, None))
    if not OwnGroups.are_possible(dict.fromkeys(ranks, ())):
        raise RanksError(
            "shard='auto' needs groups that some of the processes make alone, which this torch or "
            "its NCCL with a device_id cannot. Let all processes share the model, or give mesh and "
            "batch_mesh with an axis as shard."
        )
    team = team_of(peers_of(RankAxis(ranks)))
    assert team is not None
    known = [c for c in team.choices if isinstance(c, _Choice)]
    found = next((c for c in known if c.compilation is settings.compilation), None)
    if found is None:
        found = _agreed(team, request, settings, ranks)
        team.choices.append(found)
    return replace(settings, options=found.options, sharing=found.lines)


def _agreed(team: Team, request: Request, settings: Settings, ranks: tuple[int, ...]) -> _Choice:
    """Predict on this rank, and compare the result with all others."""
    team.begin()
    sizes = sizes_of(request.given())
    team.agree({CALL: f"{COMPILES} for {sizes}", SIZES: sizes}, may_begin=True)
    team.here.now(Doing.COMPILING)
    try:
        table = _table(request, settings, len(ranks))
    except Exception as error:
        team.agree({}, error)
        raise
    finally:
        team.leave()
    team.agree({PROGRAM: "not understood" if table is None else str(table)})
    if table is None:  # what is wrong is said where it is compiled
        options = _shared_by(settings.options, ranks, team.place, 1, len(ranks), None)
        return _Choice(settings.compilation, options, ())
    best = table.best
    split = (best.num_batch_ranks, best.num_token_ranks, best.axis or None)
    options = _shared_by(settings.options, ranks, team.place, *split)
    return _Choice(settings.compilation, options, lines_of(table))


def lines_of(table: Splits) -> tuple[str, ...]:
    """The choice and the table, to be printed."""
    return (f"shard='auto' takes {table.best.words}", *(f"  {x}" for x in str(table).splitlines()))


def _table(request: Request, settings: Settings, num_ranks: int) -> Splits | None:
    """The time of all ways; None if the graph is not understood."""
    options, plan = settings.options, settings.plan
    if not request.alone:
        raise ShardingError(
            "The forward breaks into several graphs, so shard='auto' cannot look at all of it. "
            "pab_compile.splits predicts the time of every way: give the options of its best row."
        )
    try:
        part = captured_part(request, settings)
        program = analyse(part, options, plan, Dumper(None), expected=request.expected)
    except Exception as error:
        _log.info("shard='auto': %s", error)
        return None
    device = next((tensor.device.type for tensor in request.tensors), "cpu")
    return table_of(program, options, plan, num_ranks, device)


def table_of(
    program: Program, options: Options, plan: Plan, num_ranks: int, device_type: str
) -> Splits:
    """The time of all ways in which ranks can share a program."""
    auto = options.auto or AutoSplit()
    given = {n: v for n, v in read_options(options).items() if n not in _PARALLEL}
    machine = auto.machine_of(device_type)
    return ways_to_share(program, given, num_ranks, assumed_schedule(plan), machine, auto.calls)


def _shared_by(
    options: Options,
    ranks: tuple[int, ...],
    me: int,
    num_batch: int,
    num_tokens: int,
    axis: str | None,
) -> Options:
    """The options for one way to share. Neighbouring ranks share tokens."""
    first = me - me % num_tokens
    tokens = RankAxis(ranks[first : first + num_tokens]) if num_tokens > 1 else None
    batch = RankAxis(ranks[me % num_tokens :: num_tokens]) if num_batch > 1 else None
    return replace(options, mesh=tokens, batch_mesh=batch, shard=axis)
