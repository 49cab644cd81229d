"""SGLang: ``--backend diffusers --cache-dit-config pab.json``, with ``{"pab": {...}}`` in the file.

Its plugin group runs ``register`` in every process and applies the hook (tested against 0.5.23).
Other files go on to cache-dit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pab_compile import OptionError

from .configuration import enable, read

KEY = "pab"
TARGET = (
    "sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline.DiffusersPipeline._apply_cache_dit"
)


def register() -> None:
    """Put ``apply`` around the place where SGLang switches a cache on."""
    from sglang.multimodal_gen.runtime.platforms.plugins import HookRegistry
    from sglang.srt.plugins.hook_registry import HookType

    HookRegistry.register(TARGET, apply, HookType.AROUND)


def apply(original: Callable[..., Any], pipeline: Any, pipe: Any, server_args: Any) -> Any:
    """Compile the pipeline if the configuration is for this library, else go on.

    Args:
        original: SGLang's function.
        pipeline: its pipeline.
        pipe: the pipeline of diffusers.
        server_args: the arguments of the server.

    Raises:
        OptionError: the configuration is wrong, or SGLang would compile the pipeline too.
    """
    options = options_of(server_args.cache_dit_config)
    if options is None:
        return original(pipeline, pipe, server_args)
    if getattr(server_args, "enable_torch_compile", False):
        raise OptionError(
            "--enable-torch-compile compiles the transformer, and pab_compile does so too. Leave "
            "that argument out."
        )
    pipeline.pab_handle = enable(pipe, options)
    return pipe


def options_of(config: Any) -> dict[str, Any] | None:
    """The options for this library; None if the configuration is one of cache-dit."""
    if isinstance(config, str) and Path(config).suffix != ".json":
        return None
    if not config:
        return None
    found = read(config)
    if KEY not in found:
        return None
    options = found[KEY]
    if len(found) > 1 or not isinstance(options, Mapping):
        raise OptionError(
            f'The configuration has {", ".join(found)}. For pab_compile it has "{KEY}" alone, with '
            'its options: {"pab": {"level": "balanced"}}.'
        )
    return dict(options)
