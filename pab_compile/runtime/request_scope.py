"""Request scopes: the state of one request, entered around each of its steps."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from types import TracebackType

import torch

from pab_compile.errors import PabError

from .scope import Scope, in_scope, schedule_of


class RequestScope:
    """The running generation of one request, for servers that run the steps of many in turn.

    Enter it around every step of the request. The cache is kept in between, and other requests do
    not see it. All calls inside are of one generation. Close it when the request is over or was
    cancelled.

        scope = pab_compile.RequestScope(scheduler.timesteps)
        with scope:
            noise = transformer(latents, timestep, prompt)
        scope.close()

    Args:
        timesteps: the timestep values of all steps in order, if the model's inputs do not show
            them. A tensor is read once.

    Raises:
        PabError: ``timesteps`` is empty, or no list of numbers.
    """

    def __init__(self, timesteps: Iterable[float] | torch.Tensor | None = None) -> None:
        self._scope: Scope | None = Scope(schedule_of(timesteps), is_one=True)
        self._inside: AbstractContextManager[None] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> RequestScope:
        """Go on with the request.

        Raises:
            PabError: the scope is entered already, or closed.
        """
        with self._lock:
            if self._scope is None:
                raise PabError(
                    "This RequestScope was closed, so its cache is gone. Make one for each request "
                    "and close it after the last step."
                )
            if self._inside is not None:
                raise PabError(
                    "This RequestScope is entered already, and the steps of a request run one "
                    "after the other. Make one scope for each request."
                )
            self._inside = in_scope(self._scope)
            self._inside.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave it. What is cached stays."""
        with self._lock:
            inside, self._inside = self._inside, None
            if inside is not None:
                inside.__exit__(kind, error, traceback)

    def close(self) -> None:
        """Free the cache. A second time this does nothing.

        Raises:
            PabError: the scope is entered.
        """
        with self._lock:
            if self._inside is not None:
                raise PabError(
                    "This RequestScope is closed while it is entered: the rest of the step would "
                    "lose its cache. Leave the block first."
                )
            if self._scope is not None:
                self._scope.free()
                self._scope = None
