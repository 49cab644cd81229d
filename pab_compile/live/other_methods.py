"""Other methods of a module that run its forward: they run the compiled one.

::

    def forward_with_guidance(self, x, t, y, scale):
        out = self.forward(torch.cat([x, x]), t, y)   # not a call of the module, so not compiled

Each such method gets another ``self``: the module, but for ``forward``, which calls the module.
"""

from __future__ import annotations

import types
from contextlib import ExitStack
from typing import Any

import torch

from pab_compile.denoisers import methods_around_forward


class _Caller:
    """A module whose ``forward`` is the call of the module. All else is the module's."""

    def __init__(self, module: torch.nn.Module) -> None:
        vars(self)["_module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_module"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_module"], name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_module"](*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)["_module"](*args, **kwargs)


def run_compiled(module: torch.nn.Module, undo: ExitStack) -> None:
    """Let the other methods of a module that run its forward run the compiled one.

    Args:
        module: the module. What somebody set in the place of a method remains.
        undo: gets what lets the methods be as before.
    """
    for name in methods_around_forward(module):
        if name not in vars(module):
            method = types.MethodType(getattr(type(module), name), _Caller(module))
            object.__setattr__(module, name, method)
            undo.callback(vars(module).pop, name, None)
