"""Other sizes: inputs of a Dynamo graph at sizes that nobody asked for.

A capture at such sizes shows what follows from them, before a second request comes. Its tensors are
fake. The sizes fulfil what Dynamo requires of them, so the graph is right for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from . import ir
from .open_sizes import SizeInputs, symbols_of
from .wrapped import is_wrapped

_FACTORS = (1, 2, -1, 4, -2, 8)
_MAX_PROPOSED = 512


def other_sizes(dynamo_graph: fx.GraphModule, given: Sequence[int]) -> tuple[int, ...] | None:
    """Open sizes that differ from the given ones, each by another amount; None if none are known.

    Args:
        dynamo_graph: the graph, with Dynamo's symbols.
        given: one number per open size.
    """
    env = _environment(dynamo_graph)
    names = SizeInputs.of(dynamo_graph).names
    if env is None or not names:
        return None

    ranges = {str(symbol): (symbol, span) for symbol, span in env.var_to_range.items()}
    fixed = {symbol: span.lower for symbol, span in ranges.values() if span.is_singleton()}
    # Of two sizes that must be equal, Dynamo replaces one by what it equals.
    guards = [guard.expr.xreplace(env.replacements) for guard in env.guards]

    def are_right(sizes: Sequence[int]) -> bool:
        given = [(*ranges[name], size) for name, size in zip(names, sizes, strict=True)]
        known = fixed | {symbol: sympy.Integer(size) for symbol, _, size in given}
        in_range = all(span.lower <= size <= span.upper for _, span, size in given)
        return in_range and all(guard.xreplace(known) == sympy.true for guard in guards)

    equal = _equal_to(guards, [ranges[name][0] for name in names])

    def made_equal(sizes: Sequence[int]) -> tuple[int, ...]:
        known = {ranges[name][0]: sympy.Integer(n) for name, n in zip(names, sizes, strict=True)}
        known |= {symbol: other.xreplace(known) for symbol, other in equal.items()}
        return tuple(int(known[ranges[name][0]]) for name in names)

    return next(filter(are_right, map(made_equal, _proposed(given))), None)


def _equal_to(guards: Sequence[Any], symbols: Sequence[Any]) -> dict[Any, Any]:
    """Symbol -> what it must be equal to, of others of the symbols."""
    found: dict[Any, Any] = {}
    free = set(symbols)  # those that may still be chosen
    for guard in guards:
        sides = guard.args if isinstance(guard, sympy.Eq) else ()
        for one, other in zip(sides, reversed(sides), strict=True):
            if one in free and other.free_symbols and other.free_symbols <= free - {one}:
                if not any(one in each.free_symbols for each in found.values()):
                    found[one] = other
                    free.remove(one)
                break
    return found


def _proposed(given: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Sizes that are as even as the given ones are."""
    choices = [
        [size + factor * (number + 1) * (size & -size) for factor in _FACTORS]
        for number, size in enumerate(given)
    ]
    return itertools.islice(itertools.product(*choices), _MAX_PROPOSED)


def at_sizes(
    dynamo_graph: fx.GraphModule, args: Sequence[Any], sizes: Sequence[int]
) -> list[Any] | None:
    """The inputs of a call at other sizes; None if they cannot be made.

    Args:
        dynamo_graph: the graph, with Dynamo's symbols.
        args: its inputs. What does not depend on the sizes is taken from them.
        sizes: one number per open size.
    """
    if any(map(is_wrapped, args)):
        return None
    named = dict(zip(SizeInputs.of(dynamo_graph).names, sizes, strict=True))

    def resized(number: Any) -> int:
        if not isinstance(number, torch.SymInt):
            return number
        expression = number.node.expr
        return int(expression.xreplace({s: named[str(s)] for s in expression.free_symbols}))

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: list[Any] = []
    for node, arg in zip(ir.placeholders(dynamo_graph.graph), args, strict=True):
        example = ir.example(node)
        if isinstance(example, torch.Tensor) and symbols_of(example):
            shape, strides = (tuple(map(resized, n)) for n in (example.shape, example.stride()))
            with mode:
                arg = torch.empty_strided(shape, strides, dtype=arg.dtype, device=arg.device)
        made.append(resized(example) if isinstance(example, torch.SymInt) else arg)
    return made


def _environment(dynamo_graph: fx.GraphModule) -> Any:
    """What Dynamo noted of its symbols."""
    for node in ir.placeholders(dynamo_graph.graph):
        example = ir.example(node)
        numbers = [example]
        if isinstance(example, torch.Tensor):
            numbers = [*example.shape, *example.stride()]
        for number in numbers:
            if isinstance(number, torch.SymInt):
                return number.node.shape_env
    return None
