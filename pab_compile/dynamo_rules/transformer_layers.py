"""Dynamo sees the attentions inside of torch's own transformer layers.

``nn.TransformerEncoderLayer`` in evaluation runs one fused op, which holds a whole block. For this
backend Dynamo traces the layer as it runs in training, without dropout: attention, residual sums
and MLP. Both compute the same, but for rounding.

``nn.TransformerEncoder`` and ``nn.TransformerDecoder`` compare a mask with the causal one, to tell
their attentions that they may use it instead. Dynamo cannot read the answer and breaks the graph.
For this backend the answer is no: attentions then use the mask that they were given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules import transformer

from .marks import Rule, replace_calls


@functools.cache
def extend_dynamo() -> None:
    """Extend torch, once per process."""
    try:
        from torch._dynamo.variables.functions import UserFunctionVariable
    except ImportError:
        return
    rules: dict[Callable[..., Any], Rule] = {torch.backends.mha.get_fastpath_enabled: _no_fast_path}
    detect = getattr(transformer, "_detect_is_causal_mask", None)
    if detect is not None:
        rules[detect] = _not_compared
    replace_calls(UserFunctionVariable, "fn", rules)


def _no_fast_path(_tx: Any, _args: Sequence[Any], _kwargs: Mapping[str, Any]) -> Any:
    from torch._dynamo.variables.constant import ConstantVariable

    return ConstantVariable.create(False)


def _not_compared(
    _tx: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    """The answer where the model gives a mask, and does not say whether it is causal."""
    from torch._dynamo.variables.constant import ConstantVariable
    from torch._dynamo.variables.tensor import TensorVariable

    given = dict(zip(("mask", "is_causal", "size"), args, strict=False)) | dict(kwargs)
    is_stated = given.get("is_causal")
    is_open = is_stated is None or (is_stated.is_python_constant() and is_stated.value is None)
    if is_open and isinstance(given.get("mask"), TensorVariable):
        return ConstantVariable.create(False)
    return None
