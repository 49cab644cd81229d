"""Removed: models without the parts that a step reuses, what a compiler could do with them at best.

A step that reuses some kinds of attention is a model whose attention modules of these kinds return
a tensor that is there already. A step that reuses everything is a model without its blocks.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch

import pab_compile


def attention_kinds(model: torch.nn.Module, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Path -> kind of every attention module, as ``explain`` finds them.

    Args:
        model: the model, not compiled.
        inputs: those of one call, with the timestep.
    """
    found = pab_compile.explain(model, options={"ranges": "pab246"}, **inputs)
    return {site.module: site.kind for site in found.sites if site.kind != "mlp"}


def without_blocks(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of a model whose lists of modules with attention are empty."""
    found = copy.deepcopy(model)
    for module in found.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ModuleList) and _attends(child):
                setattr(module, name, torch.nn.ModuleList())
    return found


def without_attention(
    model: torch.nn.Module, paths: Collection[str], inputs: Mapping[str, Any]
) -> torch.nn.Module:
    """A copy of a model in which some attention modules return what they returned once.

    Args:
        model: the model, not compiled.
        paths: those of the modules.
        inputs: those of the call whose outputs are kept.
    """
    found = copy.deepcopy(model)
    outputs: dict[str, Any] = {}
    for path in paths:

        def keep(*call: Any, path: str = path) -> None:
            outputs[path] = call[-1]

        found.get_submodule(path).register_forward_hook(keep)
    with torch.no_grad():
        found(**inputs)
    assert len(outputs) == len(paths), f"did not run: {set(paths) - set(outputs)}"
    for path, output in outputs.items():
        found.set_submodule(path, _Kept(output))
    return found


class _Kept(torch.nn.Module):
    """A module that returns the same tensors at every call."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.output


def _attends(blocks: torch.nn.ModuleList) -> bool:
    return any("attn" in name for name, _ in blocks.named_modules())
