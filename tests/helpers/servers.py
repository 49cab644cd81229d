"""Thin fakes of servers: the few names that ``integrations/servers`` uses.

With ``PAB_SERVERS_PATH``, a folder of unpacked wheels, the files that these names come from are
taken from there. What else such a file imports stays a fake, so no server need be installed.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).parents[2]
VLLM, SGLANG, XFUSER = "vllm_omni.diffusion", "sglang.multimodal_gen.runtime", "xfuser"


def unpacked() -> Path | None:
    """The folder of unpacked wheels, if there is one."""
    found = os.environ.get("PAB_SERVERS_PATH")
    return Path(found) if found else None


def install(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Put the fakes in the place of the servers, and ``pab_servers`` on the path."""
    for name in [name for name in sys.modules if name.split(".")[0] == "pab_servers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(ROOT / "integrations" / "servers")

    def add(name: str, content: dict[str, Any], is_read: bool = False) -> ModuleType:
        made = ModuleType(name)
        vars(made).update(content)
        parent, _, last = name.rpartition(".")
        if parent and parent not in sys.modules:
            add(parent, {})
        if is_read and folder is not None:
            path = folder / name.replace(".", "/")
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            exec(compile(file.read_text(encoding="utf-8"), str(file), "exec"), vars(made))
        monkeypatch.setitem(sys.modules, name, made)
        if parent:
            setattr(sys.modules[parent], last, made)
        return made

    add(f"{VLLM}.data", {"DiffusionCacheConfig": DiffusionCacheConfig})
    add(f"{VLLM}.cache.base", {"CacheBackend": CacheBackend}, is_read=True)
    for name in ("cachedit", "magcache", "seacache", "stepcache", "teacache"):
        add(f"{VLLM}.cache.{name}", {f"{backend}Backend": dict for backend in OTHERS})
    chosen = add(f"{VLLM}.cache.selector", {"get_cache_backend": get_cache_backend}, is_read=True)
    for user in ("diffusion_model_runner", "gpu_worker"):  # of the newest, and of older versions
        add(f"{VLLM}.worker.{user}", {"get_cache_backend": chosen.get_cache_backend})
    hooks = {"HookRegistry": HookRegistry, "HookType": HookType}
    hooks = vars(add("sglang.srt.plugins.hook_registry", hooks, is_read=True))
    add(f"{SGLANG}.platforms.plugins", {"HookRegistry": hooks["HookRegistry"]})
    add(f"{SGLANG}.pipelines.diffusers_pipeline", {"DiffusersPipeline": DiffusersPipeline})
    add(f"{XFUSER}.model_executor.cache.adapters", {"apply_cache": apply_cache}, is_read=True)
    adapters = sys.modules[f"{XFUSER}.model_executor.cache.adapters"]
    package = sys.modules[f"{XFUSER}.model_executor.cache"]
    vars(package)["apply_cache"] = adapters.apply_cache


OTHERS = ("CacheDiT", "MagCache", "SeaCache", "StepCache", "TeaCache")


@dataclasses.dataclass
class DiffusionCacheConfig:
    """vLLM-Omni's configuration, with two of its settings."""

    rel_l1_thresh: float | None = None
    velocity_sim_thresholds: list[float] = dataclasses.field(default_factory=lambda: [0.95, 0.93])
    _extra_params: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DiffusionCacheConfig:
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in data.items() if key in names}
        return cls(**known, _extra_params={k: v for k, v in data.items() if k not in names})


class CacheBackend(abc.ABC):
    def __init__(self, config: Any) -> None:
        self.config = config
        self.enabled = False

    @abc.abstractmethod
    def enable(self, pipeline: Any) -> None: ...

    @abc.abstractmethod
    def refresh(self, pipeline: Any, num_inference_steps: int, verbose: bool = True) -> None: ...

    def is_enabled(self) -> bool:
        return self.enabled


def get_cache_backend(cache_backend: str | None, cache_config: Any) -> Any:
    if cache_backend is None or cache_backend == "none":
        return None
    raise ValueError(f"Unsupported cache backend: {cache_backend}.")


class HookType(enum.Enum):
    AROUND = "around"


class HookRegistry:
    _hooks: ClassVar[dict[str, list[tuple[HookType, Any, Any]]]] = {}

    @classmethod
    def register(cls, target: str, hook: Any, hook_type: HookType) -> None:
        cls._hooks.setdefault(target, []).append((hook_type, hook, None))


class DiffusersPipeline:
    """SGLang's, with the place where it switches a cache on."""

    def _apply_cache_dit(self, pipe: Any, server_args: Any) -> Any:
        return "cache-dit"


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
    raise ValueError(f"Unknown cache_method: {cache_method!r}.")
