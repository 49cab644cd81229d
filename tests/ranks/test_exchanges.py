"""What statistics and their page say of the exchanges between ranks, against what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import helpers.rank_cases as rank_cases
from helpers import browser
from helpers.world import World
from pab_compile.report.draw import format_bytes
from pab_compile.report.exchanges import OUTSIDE_OF_SITES, Exchanges
from pab_compile.report.run_stats import RunStats

pytestmark = pytest.mark.xdist_group("ranks")


def check_rank(found: dict[str, Any], rank: int) -> Exchanges:
    """Compare the statistics of a rank with what the collectives of its pieces sent."""
    stats: RunStats = found["stats"]
    said = Exchanges(stats.timeline)
    switched: dict[int, int] = {}
    for call in stats.timeline.calls:
        switched.setdefault(call.step, 0)
        switched[call.step] += sum(
            row.collectives for row in call.exchanged if row.how == "all-to-all"
        )
    assert list(switched.values()) == [number for number, _ in found["per step"]]
    in_all = [row for row in said.rows if row.how == "all-to-all"]
    assert sum(row.sent_bytes for row in in_all) == sum(sent for _, sent in found["per step"])
    rest = [row for row in said.rows if row.how != "all-to-all"]
    gathered = (sum(r.collectives for r in rest), sum(r.sent_bytes for r in rest))
    assert gathered == found["gathers"]
    assert said.by_rank[rank] == said.sent_bytes > 0
    return said


@pytest.mark.parametrize("num_ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_a_rank_says_what_it_sent_and_knows_what_the_others_sent(
    world: World, num_ranks: int, tmp_path: Path
) -> None:
    ranks = world.run(rank_cases.generate, "before the gate", "none", ranks=num_ranks)
    said = [check_rank(found, rank) for rank, found in enumerate(ranks)]
    assert {each.by_rank for each in said} == {tuple(each.sent_bytes for each in said)}
    first, stats = said[0], ranks[0]["stats"]
    assert {row.kind for row in first.rows} == {"temporal", OUTSIDE_OF_SITES}
    spared = sum(call.computes_all for call in stats.timeline.calls)
    assert 0 < spared < stats.calls
    assert first.computing.per_call() != first.reusing.per_call()
    assert f"sent {format_bytes(first.sent_bytes)}" in " ".join(str(stats).split())
    _check_page(stats, first, tmp_path)


def _check_page(stats: RunStats, said: Exchanges, folder: Path) -> None:
    page = stats.to_html(folder / "page.html")
    for words in ("Sent to other ranks", "temporal", "rank 1", format_bytes(said.sent_bytes)):
        assert words in page, words
    dom, errors = browser.document(folder / "page.html", folder)
    assert errors == []
    assert 'aria-label="Sent to other ranks"' in dom
