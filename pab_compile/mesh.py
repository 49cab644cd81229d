"""The process group whose ranks share a model's tokens, and what their graphs follow from.

Ranks that made different graphs would wait for one another for ever. So when a graph is compiled,
all of them compare a hash of everything that it follows from (``team``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed as dist
from torch import fx

from pab_compile.passes.errors import PabError

from .lower import process_group
from .options import Options
from .plan import CallablePlan, Plan


class RanksError(PabError, RuntimeError):
    """The ranks of a mesh cannot run a model together, or disagree about how."""


def group_of(mesh: Any, sequence_parallel: int | None) -> dist.ProcessGroup | None:
    """The process group that some options name; None where they ask for no parallelism.

    Args:
        mesh: one axis of a ``DeviceMesh``, or None.
        sequence_parallel: the number of all ranks, or None.

    Raises:
        RanksError: there is no process group, or it has another number of ranks.
    """
    if mesh is None and sequence_parallel in (None, 1):
        return None
    if mesh is not None:
        if mesh.ndim != 1:
            raise RanksError(
                f"The mesh has {mesh.ndim} axes {mesh.mesh_dim_names or ''}, and the tokens can be "
                'sharded over one: give it by name, as in {"mesh": mesh["sp"]}.'
            )
        return mesh.get_group()
    if not dist.is_available() or not dist.is_initialized():
        raise RanksError(
            f"sequence_parallel={sequence_parallel} needs as many processes that know of one "
            "another. Start them with torchrun --nproc-per-node, and call "
            "torch.distributed.init_process_group() before the model."
        )
    if dist.get_world_size() != sequence_parallel:
        raise RanksError(
            f"sequence_parallel={sequence_parallel}, but {dist.get_world_size()} processes run. "
            "Give their number, or with mesh the axis of a DeviceMesh that they form."
        )
    return dist.group.WORLD


def named_group(given: Mapping[str, Any] | None) -> dist.ProcessGroup | None:
    """The group that options name, before they are validated; None where it cannot be had."""
    try:
        return group_of((given or {}).get("mesh"), (given or {}).get("sequence_parallel"))
    except (RanksError, AttributeError):
        return None


def own_group(graph_module: fx.GraphModule) -> dist.ProcessGroup | None:
    """The process group over which a model exchanges by itself, if it does; its first one.

    Args:
        graph_module: Dynamo's graph.
    """
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("_c10d_functional."):
            names = [word for word in (*node.args, *node.kwargs.values()) if isinstance(word, str)]
            if names:  # that of the group is the last; an op that only waits has none
                return process_group(names[-1])
    return None


def fingerprint(options: Options, plan: Plan, graph: str) -> str:
    """Hash of what the graphs of all ranks follow from.

    Args:
        options: how to compile.
        plan: the plan that the options describe.
        graph: the captured graph, or its sites, in words that are the same in every process.
    """
    decider = _described(plan.function) if isinstance(plan, CallablePlan) else plan
    inner = options.inner if isinstance(options.inner, str) else _described(options.inner)
    chosen = (
        options.cut,
        options.coalesce,
        options.predict_in,
        options.shard,
        options.mode,
        options.axes,
    )
    words = (graph, decider, *chosen, inner)
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _described(function: Callable[..., Any]) -> tuple[str, bytes]:
    """A function in words that do not change from process to process."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name, getattr(getattr(function, "__code__", None), "co_code", b"")
