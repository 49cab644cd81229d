"""xDiT: the cache method ``pab`` of ``apply_cache``, with options as JSON (tested against 0.7).

xDiT has no plugins, so call ``register`` in the script that makes the pipeline.
"""

from __future__ import annotations

import importlib
from typing import Any

from .configuration import enable, read
from .replacing import replace

NAME = "pab"
_ADAPTERS = "xfuser.model_executor.cache.adapters"


def register() -> None:
    """Let ``apply_cache`` know the method. A second time this does nothing."""
    adapters = importlib.import_module(_ADAPTERS)
    applied = adapters.apply_cache
    if getattr(applied, "knows_pab", False):
        return

    def apply_cache(
        cache_method: str,
        num_steps: int,
        pipe: Any,
        transformer: Any = None,
        preset_kwargs: Any = None,
        cache_config: str | None = None,
        adapter_config: Any = None,
        transformer_attr: str = "transformer",
    ) -> Any:
        if cache_method != NAME:
            return applied(
                cache_method=cache_method,
                num_steps=num_steps,
                pipe=pipe,
                transformer=transformer,
                preset_kwargs=preset_kwargs,
                cache_config=cache_config,
                adapter_config=adapter_config,
                transformer_attr=transformer_attr,
            )
        target = getattr(pipe, transformer_attr) if transformer is None else transformer
        target.pab_handle = _enabled(target, transformer_attr, cache_config)
        return target

    apply_cache.knows_pab = True  # type: ignore[attr-defined]
    replace("xfuser", "apply_cache", applied, apply_cache)


def _enabled(target: Any, role: str, cache_config: str | None) -> Any:
    from types import SimpleNamespace

    return enable(SimpleNamespace(**{role: target}), read(cache_config), (role,))
