"""A tensor made of others, as quantised weights are: integers and a scale per row."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree


class Dispatched(torch.Tensor):
    """Looks like a float tensor; every op computes with its integers times its scale.

    It only sees ops after torch has taken them apart.
    """

    values: torch.Tensor
    scale: torch.Tensor

    def __new__(cls, values: torch.Tensor, scale: torch.Tensor) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=scale.dtype, device=values.device
        )

    def __init__(self, values: torch.Tensor, scale: torch.Tensor) -> None:
        self.values, self.scale = values, scale

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Any:
        """Round to eight bits."""
        scale = tensor.abs().amax(-1, keepdim=True) / 127
        return cls((tensor / scale).round().to(torch.int8), scale)

    def plain(self) -> torch.Tensor:
        """The float tensor."""
        return self.values.to(self.scale.dtype) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: dict[str, torch.Tensor], *_: Any) -> Any:
        return cls(inner["values"], inner["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].values, args[0].scale)
        args, kwargs = pytree.tree_map_only(cls, cls.plain, (args, kwargs or {}))
        return func(*args, **kwargs)


class Scaled(Dispatched):
    """The same, which sees a linear layer as a whole, as the weights of torchao do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            x, weight, *bias = args
            return func(x, weight.plain(), *bias, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


def quantise(model: torch.nn.Module, kind: type[Dispatched] = Scaled) -> None:
    """Replace the weight of every linear layer."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = kind.of(module.weight.detach())
            module.weight = torch.nn.Parameter(weight, requires_grad=False)
