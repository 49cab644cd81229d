"""Dynamo takes ``torch.backends.cuda.sdp_kernel`` for the context that replaced it.

::

    with torch.backends.cuda.sdp_kernel(enable_math=False):
        y = scaled_dot_product_attention(q, k, v)

Much code of authors still chooses kernels like this. Dynamo follows
``torch.nn.attention.sdpa_kernel``, but breaks the graph at its deprecated form, which lies inside
every block. Both allow the same kernels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from .marks import replace_calls

_KERNELS = {
    "enable_flash": SDPBackend.FLASH_ATTENTION,
    "enable_mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "enable_math": SDPBackend.MATH,
    "enable_cudnn": SDPBackend.CUDNN_ATTENTION,
}


@functools.cache
def extend_dynamo() -> None:
    """Extend torch, once per process. Without this, graphs break at ``sdp_kernel``."""
    deprecated = getattr(torch.backends.cuda, "sdp_kernel", None)
    try:
        from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    except ImportError:
        return
    if deprecated is None or not set(inspect.signature(deprecated).parameters) <= set(_KERNELS):
        return
    rule = functools.partial(_enter, inspect.signature(deprecated))
    replace_calls(TorchInGraphFunctionVariable, "value", {deprecated: rule})


def _enter(
    signature: inspect.Signature, tx: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """The context of the kernels that a call allows."""
    from torch._dynamo.variables.ctx_manager import SDPAKernelVariable

    positional = [arg.as_python_constant() for arg in args]
    named = {name: arg.as_python_constant() for name, arg in kwargs.items()}
    allowed = signature.bind(*positional, **named)
    allowed.apply_defaults()
    kernels = [_KERNELS[name] for name, is_allowed in allowed.arguments.items() if is_allowed]
    return SDPAKernelVariable.create(tx, kernels)
