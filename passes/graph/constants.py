"""Constants: what a captured graph holds besides its inputs must be real.

Tracing runs a model on fake tensors. An op that the tracer does not see may return one of them, and
then the graph holds it as a constant: a tensor without numbers, which would reach the user.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from pab_compile.passes.errors import InvariantError

from .origin import source_line


def is_fake(value: Any) -> bool:
    """Whether a value is a tensor without numbers that a tracer made."""
    return isinstance(value, torch.Tensor) and hasattr(value, "fake_mode")


def check_constants(captured: fx.GraphModule) -> None:
    """Check that no constant of a captured graph is fake.

    Raises:
        InvariantError: one is.
    """
    for place, node in _fake_constants(captured):
        users = ", ".join(f"{user}: {source_line(user) or user.target}" for user in node.users)
        raise InvariantError(
            f"The captured graph holds a tensor of the tracer as its constant {place!r} (used by "
            f"{users or 'nothing'}), so its results would be no numbers. An op that was not traced "
            "made it, such as a constructor of a tensor class. Make that tensor before the call of "
            "the model, and please report this as a defect of pab_compile. "
            'options={"on_unsupported": "passthrough"} compiles the model without reuse.'
        )


def _fake_constants(graph_module: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            found: Any = graph_module
            for name in str(node.target).split("."):
                found = getattr(found, name)
            if isinstance(found, fx.GraphModule):  # a graph that an op is given
                yield from _fake_constants(found)
            elif is_fake(found):
                yield str(node.target), node
        elif any(is_fake(leaf) for leaf in pytree.tree_leaves((node.args, node.kwargs))):
            yield str(node), node
