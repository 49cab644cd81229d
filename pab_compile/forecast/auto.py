"""``shard="auto"``: ranks choose, before they compile, how they share a generation.

Every rank predicts the time of all ways from its own graph. The graphs are equal, and so are the
predictions; the ranks compare them before they follow one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from pab_compile.auto_split import AutoSplit
from pab_compile.compile.analysis import analyse, holds_attention
from pab_compile.compile.parts import captured_part
from pab_compile.compile.request import Request
from pab_compile.compile.settings import Settings
from pab_compile.errors import RanksError
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

from .ways import RANK_OPTIONS, Split, Splits, ways_to_share

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Choice:
    """What the ranks of a team chose for one ``torch.compile`` call."""

    compilation: object
    options: Options
    lines: tuple[str, ...]


def with_chosen_split(request: Request, settings: Settings) -> Settings:
    """The settings of a compilation, with the way to share that its ranks agreed on.

    It is chosen at the first graph with attentions, and holds for all others and for all sizes.
    Every rank computes the graphs before it in full.

    Args:
        request: the graph that is compiled first.
        settings: those that the user gave, with ``shard="auto"``.

    Raises:
        RanksError: there is no process group, or the ranks differ.
        ShardingError: the ranks cannot share the model.
    """
    options = settings.options
    ranks = ranks_for(options.mesh)
    if len(ranks) == 1:
        _log.info("shard='auto': there is one process, so nothing is shared")
        return replace(settings, options=_shared_by(options, ranks, 0, None))
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
        if found.lines or request.alone:
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
    if table is None:  # of one graph, what is wrong is said where it is compiled
        whole = Split(1, len(ranks), "") if request.alone else None
        options = _shared_by(settings.options, ranks, team.place, whole)
        return _Choice(settings.compilation, options, ())
    options = _shared_by(settings.options, ranks, team.place, table.best)
    return _Choice(settings.compilation, options, lines_of(table))


def lines_of(table: Splits) -> tuple[str, ...]:
    """The choice and the table, to be printed."""
    return (f"shard='auto' takes {table.best.words}", *(f"  {x}" for x in str(table).splitlines()))


def _table(request: Request, settings: Settings, num_ranks: int) -> Splits | None:
    """The time of all ways; None if the graph is not understood, or is one without attention."""
    options, plan = settings.options, settings.plan
    try:
        part = captured_part(request, settings)
        program = analyse(
            part, options, plan, Dumper(None), request.alone, expected=request.expected
        )
    except Exception as error:
        _log.info("shard='auto': %s", error)
        return None
    if not request.alone and not holds_attention(program):
        return None
    device = next((tensor.device.type for tensor in request.tensors), "cpu")
    return table_of(program, options, plan, num_ranks, device, request.alone)


def table_of(
    program: Program,
    options: Options,
    plan: Plan,
    num_ranks: int,
    device_type: str,
    alone: bool = True,
) -> Splits:
    """The time of all ways in which ranks can share a program.

    Args:
        program: the program with the attentions.
        options: how to compile it.
        plan: the plan that the options describe.
        num_ranks: number of ranks.
        device_type: it tells which machine is assumed if none is stated.
        alone: whether the program is the whole forward.
    """
    auto = options.auto or AutoSplit()
    given = {n: v for n, v in read_options(options).items() if n not in RANK_OPTIONS}
    machine = auto.machine_of(device_type)
    schedule = assumed_schedule(plan)
    return ways_to_share([program], given, num_ranks, schedule, machine, auto.calls, alone)


def _shared_by(options: Options, ranks: tuple[int, ...], me: int, split: Split | None) -> Options:
    """The options for one way to share; None to share nothing. Neighbours share tokens."""
    split = split or Split(1, 1, "")
    num_batch, num_tokens, ring = split.num_batch_ranks, split.num_token_ranks, split.ring
    first = me - me % num_tokens
    tokens = RankAxis(ranks[first : first + num_tokens]) if num_tokens > 1 else None
    batch = RankAxis(ranks[me % num_tokens :: num_tokens]) if num_batch > 1 else None
    axis = split.axis or None
    return replace(options, mesh=tokens, batch_mesh=batch, shard=axis, ring_parallel=ring)
