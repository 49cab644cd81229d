"""The ranks that share a model's tokens or its batch, and what their graphs follow from.

Ranks that made different graphs would wait for one another for ever. So when a graph is compiled,
all of them compare a hash of everything that it follows from (``team``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import fx

from pab_compile.errors import RanksError
from pab_compile.options import Options
from pab_compile.plans.plan import CallablePlan, Plan


@dataclass(frozen=True)
class Peers:
    """The ranks with which this one shares a model: its row and its column of a mesh.

    Attributes:
        tokens: ranks in the default group that share the tokens, this one among them, in order.
        batch: the same of those that share the rows of the batch.
        groups: names of the process groups of the two; ``""`` where there is none.
    """

    tokens: tuple[int, ...]
    batch: tuple[int, ...]
    groups: tuple[str, str] = ("", "")

    @staticmethod
    def of(tokens: dist.ProcessGroup | None, batch: dist.ProcessGroup | None = None) -> Peers:
        """Those of process groups; without one, this rank shares with none."""
        both = (tokens, batch)
        ranks = [
            tuple(dist.get_process_group_ranks(group)) if group else (dist.get_rank(),)
            for group in both
        ]
        names = [group.group_name if group else "" for group in both]
        return Peers(ranks[0], ranks[1], (names[0], names[1]))

    @property
    def num_ranks(self) -> int:
        """Ranks that run the model together."""
        return len(self.tokens) * len(self.batch)


def peers_of(
    mesh: Any = None,
    sequence_parallel: int | None = None,
    batch_mesh: Any = None,
    batch_parallel: int | None = None,
) -> Peers | None:
    """With which ranks this one shares a model; None where the options ask for no parallelism.

    Args:
        mesh: the axis of a ``DeviceMesh`` whose ranks share the tokens, or None.
        sequence_parallel: instead their number, or None.
        batch_mesh: the axis whose ranks share the rows of the batch, or None.
        batch_parallel: instead their number, or None. Ranks next to one another share tokens.

    Raises:
        RanksError: there is no process group, or it has another number of ranks.
    """
    if mesh is not None or batch_mesh is not None:
        found = Peers.of(_group_of("mesh", mesh), _group_of("batch_mesh", batch_mesh))
        if len(set(found.tokens) & set(found.batch)) > 1:
            raise RanksError(
                f"mesh (ranks {list(found.tokens)}) and batch_mesh (ranks {list(found.batch)}) are "
                "not two axes of one mesh: they share more than this rank. Give two axes, as in "
                '{"mesh": mesh["sp"], "batch_mesh": mesh["cfg"]}.'
            )
        return found
    asked = {"sequence_parallel": sequence_parallel, "batch_parallel": batch_parallel}
    wanted = " x ".join(f"{name}={num}" for name, num in asked.items() if num not in (None, 1))
    if not wanted:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RanksError(
            f"{wanted} needs as many processes that know of one another. Start them with "
            "torchrun --nproc-per-node, and call torch.distributed.init_process_group() before "
            "the model."
        )
    num_tokens, num_batch = sequence_parallel or 1, batch_parallel or 1
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    if num_tokens * num_batch != num_ranks:
        raise RanksError(
            f"{wanted}, but {num_ranks} processes run. Give their number, or with mesh and "
            "batch_mesh the axes of a DeviceMesh that they form."
        )
    first = rank - rank % num_tokens
    return Peers(
        tuple(range(first, first + num_tokens)),
        tuple(range(rank % num_tokens, num_ranks, num_tokens)),
    )


def _group_of(option: str, mesh: Any) -> dist.ProcessGroup | None:
    """The process group of one axis of a mesh."""
    if mesh is None:
        return None
    if mesh.ndim != 1:
        name = "sp" if option == "mesh" else "cfg"
        raise RanksError(
            f"The {option} has {mesh.ndim} axes {mesh.mesh_dim_names or ''}, and the ranks of one "
            f'axis share a part: give it by name, as in {{"{option}": mesh["{name}"]}}.'
        )
    return mesh.get_group()


def named_peers(given: Mapping[str, Any] | None) -> Peers | None:
    """What ``peers_of`` says of options before they are validated; None where it raises."""
    names = ("mesh", "sequence_parallel", "batch_mesh", "batch_parallel")
    try:
        return peers_of(*((given or {}).get(name) for name in names))
    except (RanksError, AttributeError, TypeError):
        return None


def own_peers(graph_module: fx.GraphModule) -> Peers | None:
    """The ranks with which a model exchanges by itself, if it does; of its first group.

    Args:
        graph_module: Dynamo's graph.
    """
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("_c10d_functional."):
            names = [word for word in (*node.args, *node.kwargs.values()) if isinstance(word, str)]
            if names:  # that of the group is the last; an op that only waits has none
                return Peers.of(_process_group(names[-1]))
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


def _process_group(name: Any) -> Any:
    """The process group that a functional collective names."""
    return dist.distributed_c10d._resolve_process_group(name)
