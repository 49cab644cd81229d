"""Marks the backends that Dynamo is extended for, and replaces calls while it traces for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_MARK = "_pab_extends_dynamo"

Rule = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
"""Dynamo's tracer, the arguments of a call as Dynamo's variables -> the result, or None."""


def mark(backend: Callable[..., Any]) -> None:
    """Mark a backend: Dynamo is extended for marked ones only."""
    setattr(backend, _MARK, True)


def is_marked(backend: Any) -> bool:
    """Whether a backend is marked; it may be wrapped by ``torch.compile``."""
    return hasattr(getattr(backend, "compiler_fn", backend), _MARK)


def replace_calls(
    variable_class: Any, attribute: str, rules: Mapping[Callable[..., Any], Rule]
) -> None:
    """Trace calls of some functions by rules. A rule that returns None leaves the call to Dynamo.

    Args:
        variable_class: Dynamo's class of the variables that hold such functions.
        attribute: the name under which these variables hold the function.
        rules: function -> its rule.
    """
    call = variable_class.call_function

    @functools.wraps(call)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        function = getattr(self, attribute)
        rule = rules.get(function) if callable(function) else None
        if rule is not None and is_marked(tx.output.compiler_fn):
            result = rule(tx, args, kwargs)
            if result is not None:
                return result
        return call(self, tx, args, kwargs)

    variable_class.call_function = call_function
