"""Workers: one process per variant, asked in turns.

Dynamo keeps its compilations by code object and gives a function up after some recompilations, for
every user of it: diffusers' hooks under `torch.compile` do that to the model's forward. So every
variant lives in a process of its own. Only one of them computes at a time.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Argument = TypeVar("Argument")


class Worker:
    """A process that answers requests.

    Args:
        make: makes what answers from `argument`, in the new process.
        argument: must survive pickling, as requests and answers must.
    """

    def __init__(
        self, make: Callable[[Argument], Callable[[Any], Any]], argument: Argument
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, make, argument, torch.get_num_threads()), daemon=True
        )
        self._process.start()
        other.close()

    def ask(self, request: Any) -> Any:
        """Returns the answer.

        Raises:
            RuntimeError: the process died; what it printed says why.
        """
        try:
            self._pipe.send(request)
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
    make: Callable[[Argument], Callable[[Any], Any]],
    argument: Argument,
    num_threads: int,
) -> None:
    torch.set_num_threads(num_threads)
    answer = make(argument)
    while True:
        try:
            asked = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(asked))
