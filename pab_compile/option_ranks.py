"""Options about ranks that share a generation: whether they are right and go together."""

from __future__ import annotations

from typing import Any

from .auto_split import AUTO_SHARD, check_auto
from .errors import OptionError
from .option_values import check_choice

SHARDED_AXES = ("t", "h", "w", "s", "packed")


def check_ranks(parsed: Any) -> None:
    """Check which ranks share a generation, and how.

    Args:
        parsed: all ``Options``.

    Raises:
        OptionError: names the option, what was found and what is accepted.
    """
    meshes = {"mesh": parsed.mesh, "batch_mesh": parsed.batch_mesh}
    numbers = {name: getattr(parsed, name) for name in ("sequence_parallel", "batch_parallel")}
    for name, num in numbers.items():
        if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
            raise OptionError(f"{name}={num!r}: a number of ranks is an integer from 1 up.")
    given = [name for name, value in (*meshes.items(), *numbers.items()) if value is not None]
    if any(name in meshes for name in given) and any(name in numbers for name in given):
        raise OptionError(
            f"{' and '.join(given)} were given together. Give mesh and batch_mesh, or "
            "sequence_parallel and batch_parallel, but not one of each pair."
        )
    if parsed.auto is not None:
        check_auto(parsed.auto, [name for name in given if name != "mesh"])
        given = [*given, "shard"]
    if given and parsed.cache_budget is not None:
        raise OptionError(
            f"cache_budget and {given[0]} were given together. Ranks that share a generation have "
            "to cache the same sites, and their memory may differ: leave cache_budget out."
        )
    for name, mesh in meshes.items():
        if mesh is not None and not hasattr(mesh, "get_group"):
            raise OptionError(
                f"{name}={mesh!r} is no DeviceMesh. Make one with "
                'torch.distributed.device_mesh.init_device_mesh("cuda", (N,)).'
            )
    if parsed.ring_parallel is not None:
        _check_ring(parsed)
    if parsed.shard is not None and parsed.auto is None:
        check_choice("shard", parsed.shard, (*SHARDED_AXES, AUTO_SHARD))
        if "mesh" not in given and "sequence_parallel" not in given:
            raise OptionError(
                f"shard={parsed.shard!r} names an axis of the tokens, but no option says "
                "which ranks share them: give mesh or sequence_parallel; to comm, num_ranks; to "
                "scaling, ranks."
            )


def _check_ring(parsed: Any) -> None:
    ring = parsed.ring_parallel
    if isinstance(ring, bool) or not isinstance(ring, int) or ring < 2:
        raise OptionError(f"ring_parallel={ring!r}: a ring has an integer of ranks, from 2 up.")
    if parsed.auto is not None or (parsed.mesh is None and parsed.sequence_parallel is None):
        raise OptionError(
            f"ring_parallel={ring} says how ranks share the tokens, but no option says how many "
            "do: give mesh or sequence_parallel; to comm, num_ranks; to scaling, ranks."
        )
    if parsed.num_ranks % ring:
        raise OptionError(
            f"ring_parallel={ring}, and {parsed.num_ranks} ranks share the tokens. They form "
            f"rings of equal length: give a divisor of {parsed.num_ranks}."
        )
