"""Number clocks: timesteps that are Python numbers, and that Dynamo took for constants.

Dynamo takes a number for a constant until it sees a second value. The first graph of such a model
has no timestep, so it computes. From the second value on the number is an input of the graph
(``passes.graph.number_inputs``). If it stays a constant, every step would be compiled anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from pab_compile.dynamo import ModelCall
from pab_compile.errors import UnsupportedModelError
from pab_compile.passes.errors import NoTimestepError
from pab_compile.passes.graph.number_inputs import timely_numbers

NUMBER_WAS_NEW = "Dynamo took the timestep, a Python number, for a constant at its first value"


class NumberClocks:
    """The values that Dynamo took for constants, per thing that was called."""

    def __init__(self) -> None:
        self._values: weakref.WeakKeyDictionary[Any, set[float]] = weakref.WeakKeyDictionary()

    def check(self, call: ModelCall, error: NoTimestepError) -> UnsupportedModelError | None:
        """Judge a graph without a timestep.

        Args:
            call: the call of the model.
            error: says that the graph has no timestep.

        Returns:
            None if the graph shall compute this once; else the error, with what to do.
        """
        numbers = timely_numbers(call.arguments())
        if not numbers:
            return error.as_unsupported()
        # Dynamo takes 0 and 1 for constants even where it takes other numbers for inputs.
        new = {float(value) for value in numbers.values()} - {0.0, 1.0}
        try:
            seen = self._values.setdefault(call.owner, set())
        except TypeError:  # what was called cannot be referred to
            return number_error(numbers)
        seen |= new
        return number_error(numbers) if len(seen) > len(numbers) else None

    def forget(self, call: ModelCall) -> None:
        """The numbers of a model are inputs of its graph now."""
        try:
            self._values.pop(call.owner, None)
        except TypeError:
            return


def number_error(numbers: Mapping[str, float]) -> UnsupportedModelError:
    """The error for timesteps that are numbers and stay constants of the graph."""
    name = next(iter(numbers))
    names = ", ".join(map(repr, numbers))
    return UnsupportedModelError(
        f"No timestep was found: {names} is a Python number, and torch.compile makes a graph of "
        "its own for each value, so every step would be compiled. Give the model a tensor: "
        f"{name}=torch.tensor([{name}]). Only some models can be given a number: those that use it "
        "in torch.tensor, torch.full or + - * / alone, not in torch.as_tensor, and that are "
        "compiled without dynamic=False. step() and generation(timesteps=...) state the step, but "
        "do not keep torch.compile from compiling each value."
    )


number_clocks = NumberClocks()
