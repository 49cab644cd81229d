"""A few processes that form a gloo process group, and what tests ask of them.

The processes are started once and serve many cases. A case for more ranks starts as many anew.
They are forked from one that has imported what takes longest, torch and diffusers. A case is a
function of the process group of its ranks; it runs on all of them and returns something that can be
pickled.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import fx

from pab_compile.passes.graph import ir

_SECONDS = 120
_IMPORTED = [
    "pab_compile.backend",
    "torch._dynamo",
    "diffusers.models.transformers.latte_transformer_3d",
]
_ALL_TO_ALL = torch.ops._c10d_functional.all_to_all_single.default
_ALL_REDUCE = torch.ops._c10d_functional.all_reduce.default
_ALL_GATHER = torch.ops._c10d_functional.all_gather_into_tensor.default


class World:
    """Processes that wait for cases.

    Args:
        size: how many at first. Few start in less time.
        seconds: the timeout of their groups.
    """

    def __init__(self, size: int, seconds: float = _SECONDS) -> None:
        self._timeout = seconds
        self._start(size)

    def _start(self, size: int) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        self._folder = tempfile.TemporaryDirectory()
        self._tasks = [context.Queue() for _ in range(size)]
        self._answers = context.Queue()
        self._processes = [
            context.Process(
                target=_serve,
                args=(
                    rank,
                    size,
                    self._folder.name,
                    self._tasks[rank],
                    self._answers,
                    self._timeout,
                ),
                daemon=True,
            )
            for rank in range(size)
        ]
        for process in self._processes:
            process.start()

    def run(
        self,
        case: Callable[..., Any],
        *args: Any,
        ranks: int,
        alone: bool = False,
        killed: Sequence[int] = (),
    ) -> list[Any]:
        """Run a case on the first ranks; what each of them returned.

        Args:
            case: the case.
            args: its arguments after the group.
            ranks: how many.
            alone: whether these must be all processes.
            killed: ranks whose processes end in the case, so that they return nothing.

        Raises:
            AssertionError: it raised on some rank; holds that rank's traceback.
        """
        if ranks > len(self._processes) or (alone and ranks < len(self._processes)):
            self.begin_anew(ranks)
        where = f"{case.__module__}:{case.__qualname__}"
        for rank in range(ranks):
            self._tasks[rank].put((where, args, ranks))
        answers = [self._answers.get(timeout=2 * _SECONDS) for _ in range(ranks - len(killed))]
        answers.sort(key=lambda answer: answer[0])
        for rank, ok, result in answers:
            assert ok, f"rank {rank}:\n{result}"
        return [result for _, _, result in answers]

    def begin_anew(self, size: int) -> None:
        """End the processes and start others, which know nothing of earlier cases."""
        self.close()
        self._start(size)

    def close(self) -> None:
        """End the processes."""
        for tasks in self._tasks:
            tasks.put(None)
        for process in self._processes:
            process.join(timeout=20)
            if process.is_alive():
                process.terminate()
        self._folder.cleanup()


def _serve(rank: int, size: int, folder: str, tasks: Any, answers: Any, seconds: float) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    store = dist.FileStore(os.path.join(folder, "store"), size)
    store.set(f"started {rank}", "")
    store.wait([f"started {each}" for each in range(size)], timedelta(seconds=_SECONDS))
    wait = timedelta(seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)
    groups = {num: dist.new_group(list(range(num))) for num in range(2, size + 1)}
    while (task := tasks.get()) is not None:
        where, args, num = task
        module, _, name = where.partition(":")
        try:
            torch._dynamo.reset()
            case = getattr(importlib.import_module(module), name)
            answers.put((rank, True, case(groups[num], *args)))
        except BaseException:
            answers.put((rank, False, traceback.format_exc()))
    dist.destroy_process_group()


def meet_beside(group: dist.ProcessGroup, where: str) -> None:
    """Wait for all ranks, beside the groups that they may have left."""
    store, size = dist.group.WORLD.get_group_store(), group.size()  # type: ignore[union-attr]
    epoch = store.add(f"beside/{where}/{group.rank()}", 1)
    keys = [f"beside/{where}/{rank}/{epoch}" for rank in range(size)]
    store.set(keys[group.rank()], "")
    end = time.monotonic() + 60
    while not store.check(keys):
        assert time.monotonic() < end, f"a rank did not come: {where}"
        time.sleep(0.02)


class Counter:
    """An inner compiler that runs pieces as they are and counts what they exchange.

    Attributes:
        calls: all-to-alls that ran.
        sent: bytes that this rank sent to others in them.
        gathers: gathers of equal parts, and sums of all ranks, that ran in all steps.
        gathered: bytes that it sent in them.
    """

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.calls = 0
        self.sent = 0
        self.gathers = 0
        self.gathered = 0

    def __call__(self, graph_module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        """Take a piece."""
        nodes = list(graph_module.graph.find_nodes(op="call_function", target=_ALL_TO_ALL))
        sums = list(graph_module.graph.find_nodes(op="call_function", target=_ALL_REDUCE))
        gathers = list(graph_module.graph.find_nodes(op="call_function", target=_ALL_GATHER))

        def run(*args: torch.Tensor) -> Any:
            for node in nodes:
                sizes = list(node.args[2])
                self.calls += 1
                self.sent += (sum(sizes) - sizes[self._rank]) * ir.tensor(node).element_size()
            for node in gathers:
                self.gathers += 1
                self.gathered += ir.num_bytes(node.args[0]) * (int(node.args[1]) - 1)
            for node in sums:  # as a ring of all ranks sends them
                size = dist.get_world_size()
                self.gathers += 1
                self.gathered += round(2 * (size - 1) * ir.num_bytes(node) / size)
            return graph_module.forward(*args)

        return run

    def per_step(self, steps: Iterable[Any]) -> list[tuple[int, int]]:
        """Run a loop; calls and bytes of every step."""
        found = []
        for _ in steps:
            found.append((self.calls, self.sent))
            self.calls = self.sent = 0
        return found


class Mesh:
    """What the backend asks of one axis of a ``DeviceMesh``, for a group of the test's own."""

    ndim = 1

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def get_group(self) -> dist.ProcessGroup:
        return self._group

    def size(self) -> int:
        return self._group.size()
