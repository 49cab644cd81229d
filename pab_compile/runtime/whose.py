"""Whose: which model a run belongs to, whatever was compiled and whatever the user names.

A run is known by what was called (a module, a function, or the owner of a method) and by the
weights that its graph read. The user may name the compiled module, the module inside it, a compiled
method or function, a module that contains or is contained in the compiled one, or a pipeline.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.dynamo import inner_callables, model_calls
from pab_compile.passes.graph.wrapped import plain_tensors


@dataclass(frozen=True)
class Named:
    """What the user named, as ids of live objects.

    Attributes:
        roots: the object itself, and what Dynamo wrapped in it.
        objects: modules, functions and owners of methods in it.
        weights: its weights and buffers; for a weight that is made of others, these.
    """

    roots: frozenset[int]
    objects: frozenset[int]
    weights: frozenset[int]

    @staticmethod
    def of(model: Any) -> Named:
        """What a module, a compiled callable or a pipeline consists of."""
        found = list(inner_callables(model))
        objects = {id(each): each for each in found}
        for each in found:
            inside = getattr(each, "components", None)  # of a pipeline
            parts = [*vars(each).values()] if hasattr(each, "__dict__") else []
            parts += inside.values() if isinstance(inside, dict) else []
            for part in parts:
                if isinstance(part, torch.nn.Module) or callable(part):
                    objects |= {id(inner): inner for inner in inner_callables(part)}
        for module in [each for each in objects.values() if isinstance(each, torch.nn.Module)]:
            objects |= {id(inner): inner for inner in module.modules()}
        modules = [each for each in objects.values() if isinstance(each, torch.nn.Module)]
        own = [m._parameters.values() for m in modules] + [m._buffers.values() for m in modules]
        tensors = [tensor for group in own for tensor in group if tensor is not None]
        plain = {id(part) for tensor in tensors for _, part in plain_tensors(tensor)}
        return Named(frozenset(map(id, found)), frozenset(objects), frozenset(plain))


@dataclass(frozen=True, eq=False)
class Whose:
    """Who was called in a run, the innermost first, and what its first graph with sites read.

    Attributes:
        owners: modules, functions, and owners of methods.
        weights: ids of the weights. Some are no parameters, such as the scales beside a weight.
    """

    owners: tuple[weakref.ref[Any], ...]
    weights: frozenset[int]

    @staticmethod
    def running(weights: Sequence[object]) -> Whose:
        """Whose the running code is."""
        owners = tuple(ref for call in model_calls() if (ref := _reference(call.owner)))
        return Whose(owners, frozenset(map(id, weights)))

    def is_of(self, named: Named) -> bool:
        """Whether the run is of what the user named, or of something around it."""
        owners = [owner for ref in self.owners if (owner := ref()) is not None]
        if any(id(owner) in named.objects for owner in owners) or self.weights <= named.weights:
            return True
        if self.weights.isdisjoint(named.weights):
            return False
        # Models may share weights, so a module that was called must contain the named one.
        modules = [owner for owner in owners if isinstance(owner, torch.nn.Module)]
        inside = {id(inner) for module in modules for inner in module.modules()}
        return not modules or not inside.isdisjoint(named.roots)


def _reference(owner: object) -> weakref.ref[Any] | None:
    try:
        return weakref.ref(owner)
    except TypeError:  # its class has no room for one
        return None
