"""Several: what ranks exchange for a forward of several graphs. Each graph is shared alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pab_compile.errors import ShardingError
from pab_compile.options import Options
from pab_compile.passes.parallel.split_batch import shares_calls
from pab_compile.passes.program import Program
from pab_compile.plans.schedule import Schedule

from .comm_report import CommReport, CommRow, Work
from .predict import predict
from .weights import GatheredAround


def predict_all(
    programs: Sequence[Program],
    options: Options,
    num_ranks: int,
    schedule: Schedule,
    around: Sequence[GatheredAround] = (),
) -> CommReport:
    """What ranks would exchange and compute for all graphs of a forward.

    Args:
        programs: its graphs that hold attentions, each with its sites.
        options: they say how many ranks share the batch.
        num_ranks: number of all ranks.
        schedule: the steps of a generation.
        around: weights that are gathered before the forward.

    Raises:
        ShardingError: no axis of a graph can be sharded over so many ranks. Or the ranks would
            share the two calls of guidance, which they can if there is one graph only.
    """
    if len(programs) > 1 and shares_calls(programs[0], options.num_batch_ranks):
        raise ShardingError(
            f"{len(programs)} graphs of the forward hold attentions, and two ranks can share the "
            "two calls of guidance for a forward of one graph only. Leave batch_parallel and "
            "batch_mesh out, and let the ranks share the tokens."
        )
    found = joined([predict(program, options, num_ranks, schedule) for program in programs])
    weights = tuple(each.row(found.num_steps) for each in around)
    return replace(
        found,
        rows=(*found.rows, *weights),
        always=(*found.always, *weights),
        never=(*found.never, *weights),
    )


def joined(reports: Sequence[CommReport]) -> CommReport:
    """The report of several graphs that run one after another."""
    if len(reports) == 1:
        return reports[0]
    first = reports[0]

    def rows(part: Callable[[CommReport], Sequence[CommRow]]) -> tuple[CommRow, ...]:
        return tuple(row for report in reports for row in part(report))

    def work(part: Callable[[CommReport], Work]) -> Work:
        found = [part(report) for report in reports]
        return Work(sum(w.shared for w in found), sum(w.replicated for w in found))

    return CommReport(
        axis=", ".join(dict.fromkeys(report.axis for report in reports if report.axis)),
        num_ranks=first.num_ranks,
        num_batch_ranks=first.num_batch_ranks,
        num_steps=first.num_steps,
        rows=rows(lambda report: report.rows),
        always=rows(lambda report: report.always),
        never=rows(lambda report: report.never),
        work=work(lambda report: report.work),
        work_always=work(lambda report: report.work_always),
        computed=round(sum(report.computed for report in reports), 6),
        reasons=tuple(reason for report in reports for reason in report.reasons),
    )
