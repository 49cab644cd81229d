"""Names for the calls of a step, where ComfyUI knows them apart and the model's inputs do not.

Context windows get other frames of one video with the same prompts. Prompts with hooks of their own
differ in the weights alone. ComfyUI names prompts and windows in the options of every call.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pab_compile

_MOVES = (
    "PAB: context windows differ from step to step, so these reuse nothing. The schedules "
    "standard_static and batched keep the windows where they are."
)


def need_names(guider: Any, extra: Mapping[str, Any]) -> bool:
    """Whether calls of a step may differ in nothing that the model gets.

    Args:
        guider: ComfyUI's, with the prompts.
        extra: the sampler's extra arguments, with the options of the model.
    """
    if extra.get("model_options", {}).get("context_handler") is not None:
        return True
    prompts = getattr(guider, "conds", None) or {}
    return any(prompt.get("hooks") for group in prompts.values() for prompt in group or ())


class NamedCalls:
    """States step and lane of every call of a generation.

    A call whose window was not there at the first step runs apart: it could only reuse outputs of
    other frames, and would keep its own for nothing.

    Args:
        sigmas: those of all steps, without the end.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = sigmas
        self._windows: set[tuple[int, ...]] = set()
        self._lanes: dict[Hashable, str] = {}
        self._has_warned = False

    @contextmanager
    def around(self, options: Mapping[str, Any]) -> Iterator[None]:
        """Run a call of the model.

        Args:
            options: ``transformer_options``.
        """
        now = float(options["sigmas"].flatten()[0])
        index = min(range(len(self._sigmas)), key=lambda i: abs(self._sigmas[i] - now))
        window = tuple(getattr(options.get("context_window"), "index_list", ()))
        if index == 0:
            self._windows.add(window)
        if window in self._windows:
            key = (window, tuple(options["uuids"]))
            lane = self._lanes.setdefault(key, f"call {len(self._lanes)}")
            with pab_compile.step(index, len(self._sigmas), lane):
                yield
            return
        if not self._has_warned:
            logging.warning(_MOVES)
            self._has_warned = True
        with pab_compile.generation():
            yield
