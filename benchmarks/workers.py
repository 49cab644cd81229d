"""Workers: one process per variant, run in turns.

Dynamo keeps its compilations by code object and gives a function up after some recompilations, for
every user of it: diffusers' hooks under `torch.compile` do that to the model's forward. So every
variant lives in a process of its own. Only one of them computes at a time.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from .sampling import Task
from .variants import Variant

Argument = TypeVar("Argument")


class Worker:
    """A process that holds a variant, and generates when it is asked to.

    Args:
        make: makes the task and the variant from `argument`, in the new process.
        argument: must survive pickling.
    """

    def __init__(
        self, make: Callable[[Argument], tuple[Task, Variant]], argument: Argument
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, make, argument, torch.get_num_threads()), daemon=True
        )
        self._process.start()
        other.close()

    def generate(self) -> float:
        """Runs a generation and returns its seconds.

        Raises:
            RuntimeError: the process died; what it printed says why.
        """
        return self._ask("generate")

    def latents(self) -> torch.Tensor:
        """Returns the latents of the last generation."""
        return torch.tensor(self._ask("latents"))

    def _ask(self, question: str) -> Any:
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("a worker died; what it printed says why") from error

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.terminate()


def _serve(
    pipe: Connection,
    make: Callable[[Argument], tuple[Task, Variant]],
    argument: Argument,
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    task, variant = make(argument)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        if asked == "latents":
            pipe.send(variant.latents.tolist())
            continue
        start = time.perf_counter()
        variant.generate(task)
        pipe.send(time.perf_counter() - start)
