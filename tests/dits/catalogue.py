"""All DiTs, and the classes of diffusers that are none."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

import torch
from diffusers import ModelMixin
from diffusers.models import transformers

from . import (
    audio,
    audio_video,
    cross,
    cross_video,
    factorised,
    hunyuan_video,
    joint_video,
    mmdit,
    other,
    packed,
    single_stream,
    wan,
    world_video,
)
from .spec import Dit

_FAMILIES = (
    audio_video,
    cross_video,
    factorised,
    hunyuan_video,
    joint_video,
    wan,
    world_video,
    packed,
    mmdit,
    cross,
    single_stream,
    audio,
    other,
)
CATALOGUE: dict[str, Dit] = {dit.name: dit for family in _FAMILIES for dit in family.DITS}

# Classes of diffusers.models.transformers that are no DiT: name -> why.
NO_DITS = {
    "MiniMaxMusic3RVQDepthDecoder": "a language model that predicts one code after another: it "
    "denoises nothing and has no timestep",
}


@cache
def transformer_classes() -> dict[str, type[torch.nn.Module]]:
    """Name -> class of every transformer of the installed diffusers."""
    found: dict[str, type[torch.nn.Module]] = {}
    for info in pkgutil.iter_modules(transformers.__path__):
        module = importlib.import_module(f"{transformers.__name__}.{info.name}")
        for name, cls in vars(module).items():
            is_own = inspect.isclass(cls) and cls.__module__ == module.__name__
            if is_own and issubclass(cls, ModelMixin):
                found[name] = cls
    return dict(sorted(found.items()))
