"""Pyramid Attention Broadcast on ComfyUI's own modules in eager code, by their forwards alone.

It knows nothing of the compiler. ComfyUI says in the options of every call which sigma it is of and
which prompts and frames it carries. Windows that are not there at the first step compute.
Attentions that are not due return what they returned last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch

KINDS = {
    "Wan 2.1": {r"blocks\.\d+\.self_attn": "full", r"blocks\.\d+\.cross_attn": "cross"},
    "LTX Video": {
        r"transformer_blocks\.\d+\.attn1": "full",
        r"transformer_blocks\.\d+\.attn2": "cross",
    },
}
"""Model -> names of its attentions -> their kind."""


class Broadcast:
    """While it is entered, attentions of a module compute at every so many steps.

    Args:
        module: the module that denoises.
        kinds: names of attentions -> their kind.
        ranges: kind -> compute every so many steps.

    Attributes:
        reused: how often an attention returned what it had returned before.
    """

    def __init__(
        self, module: torch.nn.Module, kinds: Mapping[str, str], ranges: Mapping[str, int]
    ) -> None:
        self.reused = 0
        self._module, self._ranges = module, ranges
        self._found = [
            (name, inside, kind)
            for name, inside in module.named_modules()
            for pattern, kind in kinds.items()
            if re.fullmatch(pattern, name)
        ]
        self._cache: dict[object, tuple[int, torch.Tensor]] = {}
        self._step, self._lane = 0, ""
        self._windows: list[list[int] | None] = []

    def __enter__(self) -> Broadcast:
        """Replace the forwards."""
        self._hook = self._module.register_forward_pre_hook(self._begin, with_kwargs=True)
        for name, inside, kind in self._found:
            inside.forward = self._instead(name, inside.forward, self._ranges[kind])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put them back."""
        self._hook.remove()
        for _, inside, _ in self._found:
            del inside.forward

    def _begin(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        options = kwargs["transformer_options"]
        weights = sum(float(each.float().abs().sum()) for each in module.parameters())
        self._step = options["sample_sigmas"].tolist().index(float(options["sigmas"][0]))
        window = getattr(options.get("context_window"), "index_list", None)
        if self._step == 0:
            self._windows.append(window)
        moved = f" {self._step}" if window not in self._windows else ""
        self._lane = f"{options['uuids']} {window} {weights:.2f}{moved}"

    def _instead(self, name: str, forward: Any, every: int) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            key, due = (name, self._lane), self._step - self._step % every
            if due < self._step and self._cache.get(key, (-1, None))[0] == due:
                self.reused += 1
                return self._cache[key][1]
            result = forward(*args, **kwargs)
            self._cache[key] = (self._step, result)
            return result

        return called
