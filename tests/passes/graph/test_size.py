"""Numbers that remember how they follow from open sizes."""

from __future__ import annotations

import copy
import math

import pytest
import sympy

from pab_compile.passes.graph.size import Conditions, Size

HEIGHT, TEXT = sympy.symbols("height text", integer=True, positive=True)


def sizes() -> tuple[int, int, Conditions]:
    """Two open sizes, 12 and 7."""
    conditions = Conditions((HEIGHT, TEXT), (12, 7))
    return conditions.size(HEIGHT), conditions.size(TEXT), conditions


def expression(number: int) -> sympy.Expr:
    assert isinstance(number, Size)
    return number.expression


def test_calculations_remember() -> None:
    height, text, conditions = sizes()
    for number, value, formula in (
        (height + 1, 13, HEIGHT + 1),
        (1 + height, 13, HEIGHT + 1),
        (height - text, 5, HEIGHT - TEXT),
        (20 - text, 13, 20 - TEXT),
        (3 * height * text, 252, 3 * HEIGHT * TEXT),
        (-text, -7, -TEXT),
        (math.prod([2, height, text]), 168, 2 * HEIGHT * TEXT),
        (sum([1, height, text]), 20, 1 + HEIGHT + TEXT),
    ):
        assert int(number) == value
        assert expression(number) == formula
    assert conditions.at(expression(height // 2), (9, 7)) == 4
    assert conditions.at(expression(height % 5), (9, 7)) == 4
    assert not conditions.found


def test_a_number_without_open_sizes_is_plain() -> None:
    height, _, _ = sizes()
    assert type(height - height) is int
    assert type(0 * height) is int


def test_what_is_compared_must_hold_for_other_sizes() -> None:
    height, text, conditions = sizes()
    assert height > text
    assert height != 5
    assert conditions.hold((10, 8))
    assert not conditions.hold((6, 8)), "the first is smaller"
    assert not conditions.hold((5, 4)), "it is five"
    assert (height, 3) == (height, 3)
    assert len(conditions.found) == 2, "nothing was compared with itself"


@pytest.mark.parametrize("held", [(12, 13), (3, 4)])
def test_equal_numbers_of_other_formulas_are_a_condition(held: tuple[int, int]) -> None:
    height, text, conditions = sizes()
    assert text + 5 == height
    assert conditions.hold((8, 3))
    assert not conditions.hold(held)


def test_a_size_in_a_container_is_compared_like_any_other() -> None:
    height, _, conditions = sizes()
    assert 12 in {height}
    assert not conditions.hold((14, 7))
    assert copy.deepcopy([height])[0] is height
    assert f"{height} {[height]}" == "12 [12]"
