"""xDiT: the cache method ``pab`` of ``apply_cache``, with options as JSON (tested against 0.7).

xDiT has no plugins, so call ``register`` in the script that makes the pipeline.
"""

from __future__ import annotations

import sys
from typing import Any

from .configuration import enable, read

NAME = "pab"
_PACKAGE = "xfuser.model_executor.cache"
_ADAPTERS = f"{_PACKAGE}.adapters"
_USERS = (_PACKAGE, "xfuser.model_executor.pipelines.base_pipeline")


def register() -> None:
    """Let ``apply_cache`` know the method. A second time this does nothing."""
    import importlib

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
    for name in (_ADAPTERS, *_USERS):
        module = sys.modules.get(name)
        if module is not None and getattr(module, "apply_cache", None) is applied:
            module.apply_cache = apply_cache  # type: ignore[attr-defined]


def _enabled(target: Any, role: str, cache_config: str | None) -> Any:
    from types import SimpleNamespace

    return enable(SimpleNamespace(**{role: target}), read(cache_config), (role,))
