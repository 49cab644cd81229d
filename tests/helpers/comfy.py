"""A thin fake of ComfyUI: the few calls that ``integrations/comfyui`` makes, and a sampler.

``tests/integrations/test_comfyui.py`` holds it to a real ComfyUI where ``COMFYUI_PATH`` names one.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from helpers.captured import SmallDiT


class WrappersMP:
    SAMPLER_SAMPLE = "sampler_sample"
    APPLY_MODEL = "apply_model"
    DIFFUSION_MODEL = "diffusion_model"


class Executor:
    """Runs wrappers around a function, the first one outermost."""

    def __init__(self, original: Callable[..., Any], owner: Any, wrappers: list[Any]) -> None:
        self.original, self.class_obj, self.wrappers = original, owner, wrappers

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        rest = Executor(self.original, self.class_obj, self.wrappers[1:])
        return self.wrappers[0](rest, *args, **kwargs)


class Overridable(SmallDiT):
    """A model that lets its options change what an attention returns, as ComfyUI's do."""

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        words: torch.Tensor,
        transformer_options: dict[str, Any],
    ) -> torch.Tensor:
        assert WrappersMP.APPLY_MODEL not in transformer_options["wrappers"]
        result = super().forward(x, timestep, words)
        if "optimized_attention_override" in transformer_options:
            result = transformer_options["optimized_attention_override"](result)
        return result


class BaseModel:
    """What ComfyUI's patchers hold: the module, and how sigmas become timesteps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.diffusion_model = Overridable(1).requires_grad_(False)
        self.model_sampling = SimpleNamespace(timestep=lambda sigma: sigma * 1000)
        self.current_patcher: ModelPatcher | None = None


class ModelPatcher:
    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}
        self.current_hooks: Any = None

    def clone(self) -> ModelPatcher:
        made = ModelPatcher(self.model)
        made.model_options = copy.deepcopy(self.model_options)
        made.wrappers = {
            kind: {key: list(all_) for key, all_ in by_key.items()}
            for kind, by_key in self.wrappers.items()
        }
        return made

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None:
        self.wrappers.get(wrapper_type, {}).pop(key, None)

    def all_wrappers(self, wrapper_type: str) -> list[Any]:
        return [one for all_ in self.wrappers.get(wrapper_type, {}).values() for one in all_]


def set_torch_compile_wrapper(
    model: ModelPatcher,
    backend: str,
    options: dict[str, Any] | None = None,
    keys: tuple[str, ...] | list[str] = ("diffusion_model",),
) -> None:
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, "torch.compile")
    compiled = {
        key: torch.compile(model=model.get_model_object(key), backend=backend, options=options)
        for key in keys
    }

    def wrapper(executor: Executor, *args: Any, **kwargs: Any) -> Any:
        before = {key: getattr(executor.class_obj, key) for key in compiled}
        vars(executor.class_obj).update(compiled)
        try:
            return executor(*args, **kwargs)
        finally:
            vars(executor.class_obj).update(before)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", wrapper)


def sample(
    patcher: ModelPatcher,
    sampler: Callable[..., Any],
    sigmas: torch.Tensor,
    hook: Callable[[float], None] = lambda sigma: None,
) -> Any:
    """Sample as ComfyUI does: wrappers around the sampler, and around every call of the model.

    Args:
        patcher: the model.
        sampler: ``sample_euler`` or ``sample_heun``.
        sigmas: its steps and the end.
        hook: is called before each call of the model, as hooks are that change its weights.
    """
    model, words = patcher.model, torch.ones(2, 7, 4)
    model.current_patcher = patcher
    guider = SimpleNamespace(inner_model=model)

    def apply(x: torch.Tensor, sigma: torch.Tensor, *conditions: Any) -> torch.Tensor:
        timestep = model.model_sampling.timestep(sigma).expand(len(x))
        return model.diffusion_model(x, timestep, words, conditions[-1])

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        hook(float(sigma))
        inside = patcher.all_wrappers(WrappersMP.APPLY_MODEL)
        options = {
            **patcher.model_options["transformer_options"],
            "wrappers": patcher.wrappers,
            "uuids": ["a", "b"],
            "sigmas": sigma,
        }
        return Executor(apply, model, inside)(x, sigma, None, None, None, options)

    def run(guider: Any, sigmas: torch.Tensor, extra_args: Any, noise: Any) -> torch.Tensor:
        return sampler(denoise, noise, sigmas)

    noise = torch.randn(2, 4, 3, 2, 5, generator=torch.Generator().manual_seed(1))
    around = patcher.all_wrappers(WrappersMP.SAMPLER_SAMPLE)
    ksampler = SimpleNamespace(sampler_function=sampler)
    with torch.inference_mode():
        extra = {"model_options": patcher.model_options}
        return Executor(run, ksampler, around)(guider, sigmas, extra, noise)


def attention_pytorch() -> None:
    """What ComfyUI computes attentions with. Only its name counts here."""


def sample_euler(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for now, after in itertools.pairwise(sigmas):
        x = x + (after - now) * model(x, now)
    return x


def sample_heun(model: Any, x: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    for now, after in itertools.pairwise(sigmas):
        slope = model(x, now)
        if after > 0:
            slope = (slope + model(x + (after - now) * slope, after)) / 2
        x = x + (after - now) * slope
    return x


def install(patch: pytest.MonkeyPatch, outputs: Path) -> None:
    """Put the fake in the place of ComfyUI's modules. Its folder for outputs is not made yet."""
    modules = {
        "comfy": {},
        "comfy.ldm": {},
        "comfy.ldm.modules": {"attention": SimpleNamespace(optimized_attention=attention_pytorch)},
        "comfy.patcher_extension": {"WrappersMP": WrappersMP},
        "comfy_api": {},
        "comfy_api.torch_helpers": {"set_torch_compile_wrapper": set_torch_compile_wrapper},
        "folder_paths": {"get_output_directory": lambda: str(outputs / "output")},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        patch.setitem(sys.modules, name, module)
