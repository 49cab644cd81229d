"""Which operations of a model lie outside of its blocks: what every step has to compute."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.utils.flop_counter import FlopCounterMode


def share_outside_of_blocks(
    counter: FlopCounterMode, model: torch.nn.Module, attentions: Collection[str] | None = None
) -> float:
    """The share of the operations of one call that is outside of the blocks.

    Args:
        counter: it has counted one call of the model.
        model: a block is an entry of a list of modules that lies in no other list.
        attentions: paths of the attention modules. A list without any holds no blocks. None: every
            list holds blocks.
    """
    counts, inside = counter.get_flop_counts(), _blocks(model, attentions)
    blocks = (sum(c.values()) for name, c in counts.items() if name.split(".", 1)[-1] in inside)
    return 1 - sum(blocks) / counter.get_total_flops()


def _blocks(model: torch.nn.Module, attentions: Collection[str] | None) -> set[str]:
    lists = [n for n, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if attentions is not None:
        lists = [n for n in lists if any(path.startswith(f"{n}.") for path in attentions)]
    outer = [name for name in lists if not any(name.startswith(f"{o}.") for o in lists)]
    return {
        f"{name}.{child}"
        for name in outer
        for child, _ in model.get_submodule(name).named_children()
    }
