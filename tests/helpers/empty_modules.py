"""Empty modules in the place of packages that others import and that are not needed in tests."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_NOT_NEEDED = ("torchvision", "torchaudio")
_INSIDE = ("transforms", "functional", "io", "transforms.functional", "transforms.v2")


class _Names(type):
    """A class that has any attribute, as an enum of a package might."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Empty(ModuleType):
    """A module that has any name, and nothing in it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (), {})


def install() -> None:
    """Make torchvision and torchaudio importable where they are not installed.

    A torchvision for GPUs cannot load its kernels on a CPU. Then the module that describes them
    fails, so it is an empty one too.
    """
    if not torch.cuda.is_available():
        name = "torchvision._meta_registrations"
        sys.modules.setdefault(name, ModuleType(name))
    for name in _NOT_NEEDED:
        if name in sys.modules or importlib.util.find_spec(name) is not None:
            continue
        for full in (name, *(f"{name}.{inside}" for inside in _INSIDE)):
            module = _Empty(full)
            module.__spec__ = ModuleSpec(full, None, is_package=True)
            module.__path__ = []
            sys.modules[full] = module
