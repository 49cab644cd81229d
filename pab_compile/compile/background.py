"""Background compilation: a thread compiles pieces, one after another, while others use the model.

Until a piece is compiled, it runs as it is. So the first generation takes about as long as without
``torch.compile``, and later ones are fast.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from pab_compile.dynamo import compiling
from pab_compile.passes.graph import autocast

from .lazy_function import Function, LazyFunction

Compile = Callable[[], Function]


class _Worker:
    """One thread for all models, since torch compiles in one thread at a time."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_over = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job after those that were submitted before."""
        self._jobs.put(job)
        with self._start_lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="pab compile")
                self._thread.start()
                atexit.register(self._end)

    def wait(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.join()

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                if not self._is_over:
                    job()
            finally:
                self._jobs.task_done()

    def _end(self) -> None:
        """Leave out the jobs that are left: an interpreter must not end within a compilation."""
        self._is_over = True
        self.wait()


_worker = _Worker()
_asking = threading.Lock()


def wait_for_background() -> None:
    """Wait until everything that waits for the background thread is compiled."""
    _worker.wait()


class WarmingFunction(LazyFunction):
    """A function that runs uncompiled until the background thread has compiled it.

    Args:
        prepare: makes, of the inputs of the first call, what compiles it. It may run in another
            thread and later, so it must not keep the inputs.
        uncompiled: does the same.

    Attributes:
        is_ready: whether it was compiled.
    """

    def __init__(self, prepare: Callable[[Sequence[Any]], Compile], uncompiled: Function) -> None:
        super().__init__(lambda args: prepare(args)())
        self._prepare = prepare
        self._uncompiled = uncompiled
        self._is_asked = False
        self._error: BaseException | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it was compiled."""
        return self._compiled is not None

    def ready(self, args: Sequence[Any]) -> Function:
        """This function. The first call begins to compile it.

        Raises:
            BaseException: what the inner compiler raised.
        """
        if self._error is not None:
            raise self._error
        with _asking:  # threads that call it first together compile it once
            is_first, self._is_asked = not self._is_asked, True
        if is_first:
            self._submit(self._prepare(args), _device_of(args))
        return self

    def __call__(self, *args: Any) -> Sequence[torch.Tensor]:
        """Run it."""
        if self._compiled is None:
            self.ready(args)
        return (self._compiled or self._uncompiled)(*args)

    def _submit(self, compile_it: Compile, device: torch.device | None) -> None:
        num_threads = torch.get_num_threads()  # kernels for a CPU depend on it
        same_autocast = autocast.same_in_thread()

        def job() -> None:
            torch.set_num_threads(num_threads)  # of this thread
            try:
                with torch.no_grad(), same_autocast, _on(device), compiling():
                    self._compiled = compile_it()
            except BaseException as error:  # raised where the function is called
                self._error = error

        _worker.submit(job)


def _device_of(args: Sequence[Any]) -> torch.device | None:
    devices = (arg.device for arg in args if isinstance(arg, torch.Tensor))
    return next((device for device in devices if device.type == "cuda"), None)


def _on(device: torch.device | None) -> AbstractContextManager[Any]:
    """Make a device the current one of this thread; None changes nothing."""
    return nullcontext() if device is None else torch.cuda.device(device)
