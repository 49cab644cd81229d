"""Budgets: which sites are cached if memory is limited."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pab_compile import OptionError
from pab_compile.options import parse_options
from pab_compile.plans.budget import Claim, budget_line, chosen, in_bytes

CLAIMS = st.lists(st.builds(Claim, st.just("site"), st.integers(0, 50), st.floats(0, 100)))
CPU = torch.device("cpu")


def claims(*pairs: tuple[int, float]) -> list[Claim]:
    return [Claim(f"site{n}", num_bytes, saved) for n, (num_bytes, saved) in enumerate(pairs)]


def test_the_sites_that_save_most_per_byte_come_first() -> None:
    found = claims((10, 10.0), (10, 30.0), (5, 10.0))
    assert chosen(found, 10, 1) == {1}
    assert chosen(found, 15, 1) == {1, 2}
    assert chosen(found, 25, 1) == {0, 1, 2}


def test_a_site_that_does_not_fit_leaves_room_for_others() -> None:
    assert chosen(claims((20, 100.0), (5, 1.0)), 19, 1) == {1}


def test_every_lane_takes_its_own_memory() -> None:
    found = claims((10, 2.0), (10, 1.0))
    assert [chosen(found, 20, lanes) for lanes in (1, 2, 3)] == [{0, 1}, {0}, frozenset()]


@given(CLAIMS, st.integers(1, 300), st.integers(1, 3))
def test_the_limit_holds_and_no_better_site_is_left_out(
    found: list[Claim], limit: int, lanes: int
) -> None:
    kept = chosen(found, limit, lanes)
    used = lanes * sum(found[n].num_bytes for n in kept)
    assert used <= limit
    for left, n in itertools.product(set(range(len(found))) - kept, kept):
        one, other = found[left], found[n]
        is_better = one.saved * other.num_bytes > other.saved * one.num_bytes
        assert not (is_better and one.num_bytes <= other.num_bytes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1000, 1000), ("1000", 1000), ("8GiB", 8 * 2**30), ("1.5 MB", 1_500_000), ("2k", 2000)],
)
def test_amounts_of_memory(given: Any, expected: int) -> None:
    assert parse_options({"cache_budget": given}).cache_budget == given
    assert in_bytes(given, CPU) == expected


def test_a_fraction_is_of_what_is_free() -> None:
    assert in_bytes(0.5, CPU) > 2**20
    assert in_bytes(1.0, CPU) > 1.5 * in_bytes(0.5, CPU)


@pytest.mark.parametrize("given", [0, -1, 0.0, 1.5, True, "8 apples", "", "0GiB", [1]])
def test_anything_else_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="no amount of memory"):
        parse_options({"cache_budget": given})


def test_ranks_that_share_a_generation_have_no_budget() -> None:
    with pytest.raises(OptionError, match="leave cache_budget out"):
        parse_options({"cache_budget": 1000, "sequence_parallel": 2})


def test_a_line_names_what_is_left_out() -> None:
    assert budget_line(2**20, 2, 5, ["a", "b", "c", "d"]) == (
        "the cache budget of 1.0 MiB holds 1 of 5 sites for 2 call(s) per step; 4 compute at every "
        "step: a, b, c, ..."
    )
    assert budget_line(2**20, 1, 5, []).endswith("holds all 5 sites for 1 call(s) per step")
