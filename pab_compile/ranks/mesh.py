"""The ranks that share the tokens or the batch of a model, and a hash of what they compile.

Ranks with different graphs would wait for one another for ever. So when a graph is compiled, all
ranks compare a hash of everything that determines it (``team``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist
from torch import fx

from pab_compile.errors import OptionError, RanksError
from pab_compile.options import GivenOptions, Options, read_options
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.wrapped import mesh_of
from pab_compile.plans.plan import CallablePlan, Plan
from pab_compile.plans.plan_file import TablePlan
from pab_compile.plans.step_plan import StepPlan


@dataclass(frozen=True)
class Peers:
    """The ranks with which this rank shares a model: its row and its column of the mesh.

    Attributes:
        tokens: ranks that share the tokens, including this one, in order. They are numbers in the
            default group.
        batch: ranks that share the rows of the batch, likewise.
        groups: names of the two process groups; ``""`` if there is none.
    """

    tokens: tuple[int, ...]
    batch: tuple[int, ...]
    groups: tuple[str, str] = ("", "")

    @staticmethod
    def of(tokens: dist.ProcessGroup | None, batch: dist.ProcessGroup | None = None) -> Peers:
        """The ranks of process groups. Without a group, this rank is alone."""
        both = (tokens, batch)
        ranks = [
            tuple(dist.get_process_group_ranks(group)) if group else (dist.get_rank(),)
            for group in both
        ]
        names = [group.group_name if group else "" for group in both]
        return Peers(ranks[0], ranks[1], (names[0], names[1]))

    @property
    def num_ranks(self) -> int:
        """Number of ranks that run the model together."""
        return len(self.tokens) * len(self.batch)


@dataclass(frozen=True)
class RankAxis:
    """Ranks in the place of an axis of a ``DeviceMesh``. Their groups are made later.

    Attributes:
        ranks: numbers in the default group.
    """

    ranks: tuple[int, ...]

    def size(self) -> int:
        """Number of ranks."""
        return len(self.ranks)


def peers_of(
    mesh: Any = None,
    sequence_parallel: int | None = None,
    batch_mesh: Any = None,
    batch_parallel: int | None = None,
) -> Peers | None:
    """The ranks with which this rank shares a model; None if the options do not ask for it.

    Args:
        mesh: the axis of a ``DeviceMesh`` whose ranks share the tokens, or None.
        sequence_parallel: the number of these ranks, or None.
        batch_mesh: the axis whose ranks share the rows of the batch, or None.
        batch_parallel: the number of these ranks, or None. Successive ranks share tokens.

    Raises:
        RanksError: there is no process group, or it has another number of ranks.
    """
    if mesh is not None or batch_mesh is not None:
        if isinstance(mesh or batch_mesh, RankAxis):
            alone = (dist.get_rank(),)
            return Peers(mesh.ranks if mesh else alone, batch_mesh.ranks if batch_mesh else alone)
        found = Peers.of(_group_of("mesh", mesh), _group_of("batch_mesh", batch_mesh))
        if len(set(found.tokens) & set(found.batch)) > 1:
            raise RanksError(
                f"mesh (ranks {list(found.tokens)}) and batch_mesh (ranks {list(found.batch)}) are "
                "not two axes of one mesh: both contain another rank too. Give two axes, as in "
                '{"mesh": mesh["sp"], "batch_mesh": mesh["cfg"]}.'
            )
        return found
    asked = {"sequence_parallel": sequence_parallel, "batch_parallel": batch_parallel}
    wanted = " x ".join(f"{name}={num}" for name, num in asked.items() if num not in (None, 1))
    if not wanted:
        return None
    if not dist.is_available() or not dist.is_initialized():
        raise RanksError(
            f"{wanted} needs as many processes in a process group. Start them with torchrun "
            "--nproc-per-node, and call torch.distributed.init_process_group() before the model."
        )
    num_tokens, num_batch = sequence_parallel or 1, batch_parallel or 1
    num_ranks, rank = dist.get_world_size(), dist.get_rank()
    if num_tokens * num_batch != num_ranks:
        raise RanksError(
            f"{wanted}, but {num_ranks} processes run. Give their number, or give axes of a "
            "DeviceMesh with mesh and batch_mesh."
        )
    first = rank - rank % num_tokens
    return Peers(
        tuple(range(first, first + num_tokens)),
        tuple(range(rank % num_tokens, num_ranks, num_tokens)),
    )


def ranks_for(mesh: Any = None) -> tuple[int, ...]:
    """All ranks that share a generation in a way that they find themselves.

    Args:
        mesh: a ``DeviceMesh`` of one axis with these ranks. None: all processes.

    Raises:
        RanksError: there is no process group, or the mesh has several axes.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise RanksError(
            "shard='auto' lets the processes of a process group share a generation, and there is "
            "none. Start them with torchrun --nproc-per-node, and call "
            "torch.distributed.init_process_group() before the model."
        )
    if mesh is None:
        return tuple(range(dist.get_world_size()))
    return Peers.of(_group_of("mesh", mesh)).tokens


def _group_of(option: str, mesh: Any) -> dist.ProcessGroup | None:
    """The process group of one axis of a mesh."""
    if mesh is None:
        return None
    if mesh.ndim != 1:
        name = "sp" if option == "mesh" else "cfg"
        raise RanksError(
            f"The {option} has {mesh.ndim} axes {mesh.mesh_dim_names or ''}, but it must have one. "
            f'Name one axis, as in {{"{option}": mesh["{name}"]}}.'
        )
    return mesh.get_group()


def named_peers(given: GivenOptions) -> Peers | None:
    """``peers_of`` of options that are not validated yet; None if it raises."""
    names = ("mesh", "sequence_parallel", "batch_mesh", "batch_parallel")
    try:
        found = read_options(given)
        return peers_of(*(found.get(name) for name in names))
    except (OptionError, RanksError, AttributeError, TypeError):
        return None


def own_peers(graph_module: fx.GraphModule) -> Peers | None:
    """The ranks of the first group in which a model itself exchanges; None if it does not.

    Args:
        graph_module: Dynamo's graph.
    """
    for node in graph_module.graph.nodes:
        if node.op == "placeholder" and getattr(mesh := mesh_of(ir.example(node)), "ndim", 0) == 1:
            return Peers.of(mesh.get_group())
        if node.op == "call_function" and str(node.target).startswith("_c10d_functional."):
            names = [word for word in (*node.args, *node.kwargs.values()) if isinstance(word, str)]
            if names:  # the last one is the group; an op that only waits has no name
                return Peers.of(_process_group(names[-1]))
    return None


def fingerprint(options: Options, plan: Plan, graph: str) -> str:
    """Hash of everything that determines the graph of a rank.

    Args:
        options: how to compile.
        plan: the plan that the options describe.
        graph: the captured graph, or its sites, as a text that is the same in every process.
    """
    decider: object = plan
    if isinstance(plan, CallablePlan):
        # What it decides is compared in every generation: its closure is not in its code.
        decider = "a function"
    elif isinstance(plan, StepPlan | TablePlan):
        decider = replace(plan, origin="")  # each rank may read a file of its own
    inner = options.inner if isinstance(options.inner, str) else _described(options.inner)
    chosen = (
        options.cut,
        options.coalesce,
        options.predict_in,
        options.keeping.dtype,
        options.axis,
        options.ring_parallel,
        options.mode,
        options.axes,
        options.inputs,
    )
    words = (graph, decider, *chosen, inner)
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def _described(function: Callable[..., Any]) -> tuple[str, bytes]:
    """A function in a form that is the same in every process."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return name, getattr(getattr(function, "__code__", None), "co_code", b"")


def _process_group(name: Any) -> Any:
    """The process group that a functional collective names."""
    return dist.distributed_c10d._resolve_process_group(name)
