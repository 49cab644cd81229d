"""Sizes: numbers of a captured graph that remember how they follow from open sizes.

A pass calculates with them as with any number. What it makes of them remembers too. Whatever it
compares becomes a condition: other sizes for which the comparison has another result need an
analysis of their own. So nothing that a pass decides is taken over to sizes that it is wrong for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sympy

Operation = Callable[[Any, Any], Any]
_MAX_SIZES = 8  # of which numbers are remembered


class Condition(NamedTuple):
    """A comparison and its result.

    Attributes:
        compare: the comparison.
        left: a number or an expression.
        right: a number or an expression.
        result: what it gave.
    """

    compare: Operation
    left: int | sympy.Expr
    right: int | sympy.Expr
    result: bool


class Conditions:
    """The symbols of open sizes, and what was compared.

    Attributes:
        symbols: one per open size.
        given: the sizes that numbers are for.
        found: what was compared, each once.
    """

    def __init__(self, symbols: Sequence[sympy.Symbol], given: Sequence[int]) -> None:
        self.symbols = tuple(symbols)
        self.given = tuple(given)
        self.found: dict[Condition, None] = {}
        self._made: dict[tuple[Any, ...], int] = {}
        self._numbers: dict[tuple[int, ...], dict[sympy.Expr, int]] = {}

    def size(self, expression: sympy.Expr) -> int:
        """The number of an expression. It remembers the expression, unless that is a number."""
        key = (expression,)
        if key not in self._made:
            number = self.at(expression, self.given)
            known = expression.is_number
            self._made[key] = number if known else Size(number, expression, self)
        return self._made[key]

    def at(self, expression: int | sympy.Expr, sizes: Sequence[int]) -> int:
        """The number of an expression for other sizes."""
        if isinstance(expression, int):
            return int(expression)
        key = tuple(sizes)
        numbers = self._numbers.get(key)
        if numbers is None:
            if len(self._numbers) >= _MAX_SIZES:
                self._numbers.clear()
            numbers = self._numbers[key] = {}
        if expression not in numbers:
            known = dict(zip(self.symbols, map(sympy.Integer, key), strict=True))
            numbers[expression] = int(expression.xreplace(known))  # type: ignore[arg-type]
        return numbers[expression]

    def hold(self, sizes: Sequence[int], start: int = 0) -> bool:
        """Whether all comparisons, from one on, have the same results for other sizes."""
        return all(
            each.compare(self.at(each.left, sizes), self.at(each.right, sizes)) == each.result
            for each in list(self.found)[start:]
        )

    def calculate(self, operation: Operation, left: Any, right: Any) -> Any:
        """The result of an operation on two numbers, at least one of which is a size."""
        key = (operation, left, right)
        if key not in self._made:
            self._made[key] = self.size(sympy.sympify(_SYMBOLIC[operation](left, right)))
        return self._made[key]


class Size(int):
    """A number that remembers how it follows from open sizes.

    Attributes:
        expression: how it follows, in the symbols of the open sizes.
        conditions: those symbols, and what is compared.
    """

    expression: sympy.Expr
    conditions: Conditions

    def __new__(cls, number: int, expression: sympy.Expr, conditions: Conditions) -> Size:
        """Make a size of a number."""
        made = super().__new__(cls, number)
        made.expression = expression
        made.conditions = conditions
        return made

    def __copy__(self) -> Size:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Size:
        return self

    def __hash__(self) -> int:
        return int.__hash__(self)


def plain(value: Any) -> Any:
    """A size as a plain number; any other value as it is."""
    return int(value) if isinstance(value, Size) else value


def at_size(value: Any, sizes: Sequence[int]) -> Any:
    """A size as a plain number for other open sizes; any other value as it is."""
    return value.conditions.at(value.expression, sizes) if isinstance(value, Size) else value


def _calculating(operation: Operation, is_reflected: bool) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        left, right = (other, self) if is_reflected else (self, other)
        return self.conditions.calculate(operation, _expression(left), _expression(right))

    return method


def _comparing(compare: Operation) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        result = compare(int(self), int(other))
        left, right = self.expression, _expression(other)
        if left is not right and left != right:
            self.conditions.found[Condition(compare, left, right, result)] = None
        return result

    return method


def _negative(self: Size) -> Any:
    return self.conditions.calculate(operator.mul, self.expression, -1)


def _is_not_zero(self: Size) -> bool:
    return self != 0


def _expression(number: int) -> int | sympy.Expr:
    return number.expression if isinstance(number, Size) else int(number)


def _floor_divided(left: Any, right: Any) -> Any:
    from torch.utils._sympy.functions import FloorDiv

    return FloorDiv(left, right)


def _remainder(left: Any, right: Any) -> Any:
    from torch.utils._sympy.functions import PythonMod

    return PythonMod(sympy.sympify(left), sympy.sympify(right))


_SYMBOLIC: dict[Operation, Operation] = {
    operator.add: operator.add,
    operator.sub: operator.sub,
    operator.mul: operator.mul,
    operator.floordiv: _floor_divided,
    operator.mod: _remainder,
}
for _operation in _SYMBOLIC:
    _name = _operation.__name__
    setattr(Size, f"__{_name}__", _calculating(_operation, is_reflected=False))
    setattr(Size, f"__r{_name}__", _calculating(_operation, is_reflected=True))
for _compare in (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge):
    setattr(Size, f"__{_compare.__name__}__", _comparing(_compare))
Size.__neg__ = _negative  # type: ignore[method-assign]
Size.__bool__ = _is_not_zero  # type: ignore[method-assign]
