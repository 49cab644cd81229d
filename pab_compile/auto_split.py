"""``shard="auto"``: what is assumed where ranks find by themselves how they share a generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import OptionError
from .machine import Link, Machine

AUTO_SHARD = "auto"
_ACCELERATORS = Machine(4e14)
_PROCESSES = Machine(5e10, Link(5e-4, 1e9), Link(5e-4, 1e9))


@dataclass(frozen=True)
class AutoSplit:
    """Ranks find the way to share a generation that takes the least predicted time.

    Attributes:
        calls: calls of the model per step. 2 for guidance in two calls: halves of the ranks may
            then compute one call each. This cannot be seen at the first call.
        machine: the devices and their links. None: 4e14 operations per second and the links of
            ``Machine``; for processes on CPUs 5e10 operations, and links of 1e9 bytes per second
            with a latency of 0.5 ms. All ranks must state the same.
    """

    calls: int = 1
    machine: Machine | None = None

    def machine_of(self, device_type: str) -> Machine:
        """The devices, stated or assumed."""
        if self.machine is not None:
            return self.machine
        return _PROCESSES if device_type in ("cpu", "meta") else _ACCELERATORS


def check_auto(auto: AutoSplit, others: Sequence[str]) -> None:
    """Check what is assumed.

    Args:
        auto: as the user gave it.
        others: other options about ranks, which do not go with it.

    Raises:
        OptionError: something is wrong.
    """
    if others:
        raise OptionError(
            f"shard='auto' and {' and '.join(others)} were given together. 'auto' finds how many "
            "ranks share the tokens and the batch: leave the others out, or name an axis. A mesh "
            "of one axis may say which ranks."
        )
    if auto.calls not in (1, 2):
        raise OptionError(
            f"calls is 1, or 2 for guidance in two calls per step; got {auto.calls!r}."
        )
    if auto.machine is not None and not isinstance(auto.machine, Machine):
        raise OptionError(f"machine is a pab_compile.Machine or None, got {auto.machine!r}.")
