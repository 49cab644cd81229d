"""vLLM-Omni: the cache backend ``pab``, behind ``--cache-backend pab --cache-config JSON``.

Its plugin group runs ``register`` in every process, before the model is loaded. The interface is
that of ``vllm_omni.diffusion.cache.base.CacheBackend`` (tested against 0.30).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pab_compile
from pab_compile import OptionError

from .configuration import enable, read
from .replacing import replace

NAME = "pab"


def register() -> None:
    """Let vLLM-Omni find the backend under its name. A second time this does nothing."""
    from vllm_omni.diffusion.cache import selector

    selected = selector.get_cache_backend
    if getattr(selected, "knows_pab", False):
        return

    def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
        if cache_backend == NAME:
            return backend_class()(cache_config)
        return selected(cache_backend, cache_config)

    get_cache_backend.knows_pab = True  # type: ignore[attr-defined]
    replace("vllm_omni", "get_cache_backend", selected, get_cache_backend)


def backend_class() -> Callable[[Any], Any]:
    """The class of the backend. Its base is the server's, so it is made when that is there."""
    from vllm_omni.diffusion.cache.base import CacheBackend

    class PABBackend(CacheBackend):
        """Compiles the transformers of a pipeline, and starts afresh with every generation."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self._options = options_of(config)
            self.handle: pab_compile.Handle | None = None

        def enable(self, pipeline: Any) -> None:
            """Compile it. The first generation of a size then compiles kernels."""
            self.handle = enable(pipeline, self._options, getattr(pipeline, "_dit_modules", None))
            self.enabled = True

        def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None:
            """Drop what an earlier request left, which may have been cancelled."""
            pab_compile.reset()

    return PABBackend


def options_of(config: Any) -> dict[str, Any]:
    """The options in vLLM-Omni's configuration, which keeps unknown names apart.

    Raises:
        OptionError: it has settings of another cache backend.
    """
    if config is None or isinstance(config, (str, Mapping)):
        return read(config)
    foreign = [
        field.name
        for field in dataclasses.fields(config)
        if not field.name.startswith("_") and getattr(config, field.name) != _default(field)
    ]
    if foreign:
        raise OptionError(
            f"The cache configuration has {', '.join(foreign)}, which belong to other cache "
            'backends. Write options of pab_compile, such as {"level": "balanced"}.'
        )
    return dict(config._extra_params)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
