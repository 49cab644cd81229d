"""Groups of ops that passes look through, leave out or copy: one list for all passes.

Names are short names of ops (``ir.op_name``). A pass that needs another mix joins these groups.
"""

from __future__ import annotations

from torch import fx

from . import ir

RESHAPES = frozenset({"view", "reshape", "_unsafe_view", "flatten", "unflatten"})
UNIT_DIMS = frozenset({"unsqueeze", "squeeze"})
REORDERS = frozenset({"permute", "transpose", "t"})
PARTS = frozenset({"slice", "select", "narrow"})
COPIES = frozenset({"contiguous", "clone", "alias"})
CASTS = frozenset({"_to_copy", "to"})
SPLITS = frozenset({"split", "split_with_sizes", "chunk"})
RARE_SPLITS = frozenset({"tensor_split", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"})
RARE_RESHAPES = frozenset({"view_copy", "_reshape_alias"})
SOFTMAX = frozenset({"softmax", "_softmax", "_safe_softmax"})

VIEWS = RESHAPES | UNIT_DIMS | REORDERS
"""The same elements in another shape or order of dimensions."""

_COMMUNICATION = "_c10d_functional"


def is_communication(node: fx.Node) -> bool:
    """Whether the op starts an exchange between ranks, or waits for one."""
    return ir.op_namespace(node) == _COMMUNICATION


def is_wait(node: fx.Node) -> bool:
    """Whether the op waits for an exchange between ranks."""
    return ir.is_call(node, "wait_tensor")


def is_collective(node: fx.Node) -> bool:
    """Whether the op starts an exchange between ranks."""
    return is_communication(node) and not is_wait(node)


def is_shard(placeholder: fx.Node) -> bool:
    """Whether an input is gathered from all ranks wherever it is read, so that each has its own."""
    readers = list(placeholder.users)
    return bool(readers) and all(
        is_collective(node) or (ir.op_name(node) in CASTS and is_shard(node)) for node in readers
    )
