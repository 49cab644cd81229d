"""Cases in which one rank of a mesh is lost to the others: it raises, has no memory, or is killed.

The mesh is smaller than the world: the last process does not call the model.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import pab_compile
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from helpers.world import Mesh, meet_beside
from pab_compile.ranks import team
from pab_compile.ranks.groups import timeout_of
from pab_compile.ranks.mesh import Peers

STEPS, STOP = 5, 3
Outcome = tuple[str, float, torch.Tensor | None]
"""The error or ``""``, seconds since the step at which a rank was lost, and the predictions."""


class Stopped(Exception):
    """A rank stops its generation outside of the model."""


@dataclass
class Lost:
    """What happens in the third step of a generation on rank 1; ``""`` for nothing."""

    how: str = ""

    def inner(self, graph_module: Any, _: Any) -> Any:
        """An inner compiler whose pieces can fail."""

        def run(*args: torch.Tensor) -> Any:
            if self.how == "has no memory":
                raise torch.OutOfMemoryError("no memory left")
            if self.how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            return graph_module.forward(*args)

        return run


@contextmanager
def hasty() -> Iterator[None]:
    """Ranks wait for one another for less time, so that a test does too."""
    before = team.PATIENCE, team._SILENCE
    team.PATIENCE, team._SILENCE = 1.0, 1.5
    yield
    team.PATIENCE, team._SILENCE = before


def alone() -> torch.Tensor:
    """The predictions of one process."""
    return Loop(calls_of(_compiled(Lost())), ddim_timesteps(STEPS)).run()


def losing(group: dist.ProcessGroup, names: list[str]) -> dict[str, Outcome]:
    """One generation per name: how rank 1 is lost in it."""
    lost, found = Lost(), {}
    with hasty():
        model = _compiled(lost, mesh=Mesh(group), shard="t")
        for number, name in enumerate(names):
            meet_beside(group, f"losing {number}")
            found[name] = _outcome(model, lost, name if group.rank() == 1 else "")
            lost.how = ""
    return found


def timeouts(group: dist.ProcessGroup) -> list[float]:
    """Seconds for which a rank waits in the groups that the ranks of a mesh have for themselves."""
    world = team.team_of(Peers.of(DeviceMesh.from_group(group, "cpu").get_group()))
    assert world is not None
    names = [ranks.group for ranks in (world.grid.tokens, world.grid.batch) if ranks.size > 1]
    groups = map(dist.distributed_c10d._resolve_process_group, names)  # type: ignore[arg-type]
    return [timeout_of(each).total_seconds() for each in groups]


def _compiled(lost: Lost, **options: Any) -> Any:
    return compiled_pab(tiny_latte(1), ranges={"spatial": 2}, inner=lost.inner, **options)


def _outcome(model: Any, lost: Lost, how: str) -> Outcome:
    loop, start = Loop(calls_of(model), ddim_timesteps(STEPS)), time.monotonic()
    try:
        if how.startswith("does not call"):
            if how == "does not call":  # else its first trace would take longer than the other's
                alone()
            raise Stopped("there was no request")
        for step in loop.steps():
            start = time.monotonic()
            if step + 1 == STOP:
                lost.how = how
                if how == "raises outside":
                    raise Stopped("the request was cancelled")
    except (pab_compile.PabError, torch.OutOfMemoryError, Stopped) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start, None
    return "", 0.0, torch.stack(loop.predictions)
