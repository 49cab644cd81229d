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
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from .known_numbers import is_marked, mark

_KERNELS = {
    "enable_flash": SDPBackend.FLASH_ATTENTION,
    "enable_mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "enable_math": SDPBackend.MATH,
    "enable_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def traces_sdp_kernel(backend: Callable[..., Any]) -> Callable[..., Any]:
    """Let Dynamo follow ``sdp_kernel`` when it traces for this backend.

    Args:
        backend: a function that Dynamo gives its graphs to. It is marked, and returned.
    """
    mark(backend)
    _extend_dynamo()
    return backend


@functools.cache
def _extend_dynamo() -> None:
    """Extend torch, once per process. Other backends see no difference.

    A torch that lacks one of these places stays as it is. Then graphs break at ``sdp_kernel``.
    """
    deprecated = getattr(torch.backends.cuda, "sdp_kernel", None)
    try:
        from torch._dynamo.variables.ctx_manager import SDPAKernelVariable
        from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
    except ImportError:
        return
    if deprecated is None or not set(inspect.signature(deprecated).parameters) <= set(_KERNELS):
        return
    call = TorchInGraphFunctionVariable.call_function

    @functools.wraps(call)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if self.value is not deprecated or not is_marked(tx.output.compiler_fn):
            return call(self, tx, args, kwargs)
        positional = [arg.as_python_constant() for arg in args]
        named = {name: arg.as_python_constant() for name, arg in kwargs.items()}
        allowed = inspect.signature(deprecated).bind(*positional, **named)
        allowed.apply_defaults()
        kernels = [_KERNELS[name] for name, is_allowed in allowed.arguments.items() if is_allowed]
        return SDPAKernelVariable.create(tx, kernels)

    TorchInGraphFunctionVariable.call_function = call_function  # type: ignore[method-assign]
