"""What is emitted for a re-sharding puts every position where it belongs."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import fx

from helpers.captured import captured, values
from helpers.lockstep import run_ranks
from pab_compile.passes.graph import ir
from pab_compile.passes.parallel.emit import Emitter
from pab_compile.passes.parallel.shard import Ranks, Shard

CASES = {
    "two dimensions": ((6, 5, 4), Shard(0, 6), Shard(1, 5)),
    "the later first": ((6, 5, 4), Shard(2, 4), Shard(0, 6)),
    "factors": ((12, 3, 10), Shard(0, 6, outer=2), Shard(2, 5, inner=2)),
    "one dimension": ((2, 60), Shard(1, 3, outer=1, inner=20), Shard(1, 4, outer=15)),
    "one dimension, inner first": ((2, 60), Shard(1, 4, outer=15), Shard(1, 3, outer=1, inner=20)),
    "a prompt before the tokens": ((2, 4, 11, 3), Shard(2, 6, before=5), Shard(1, 4)),
    "a prompt on both sides": ((2, 4, 14, 3), Shard(2, 3, inner=3, before=2, after=3), Shard(1, 4)),
    "back to a prompt before the tokens": ((2, 4, 11, 3), Shard(1, 4), Shard(2, 6, before=5)),
    "back to both sides": ((2, 4, 14, 3), Shard(1, 4), Shard(2, 3, inner=3, before=2, after=3)),
}


def modules(num_ranks: int, x: torch.Tensor, *steps: Shard) -> list[fx.GraphModule]:
    """Per rank: take the part of the first shard, re-shard to each of the others in turn."""
    found = []
    full = ir.placeholders(captured(lambda x: x + 0, x=x).graph)[0]
    for rank in range(num_ranks):
        graph = fx.Graph()
        given = graph.placeholder("x")
        ir.copy_facts(given, full)
        emitter = Emitter(graph, Ranks(num_ranks, rank))
        here = emitter.take(given, steps[0])
        for source, target in itertools.pairwise(steps):
            here = emitter.switch(here, source, target, given)
        graph.output((here, emitter.take(given, steps[-1]), emitter.gather(here, steps[-1], given)))
        found.append(fx.GraphModule(torch.nn.Module(), graph))
    return found


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_a_resharded_tensor_is_the_part_of_the_other_axis(name: str, num_ranks: int) -> None:
    shape, source, target = CASES[name]
    x = values(*shape, seed=1)
    for switched, expected, whole in run_ranks(modules(num_ranks, x, source, target), [x]):
        assert torch.equal(switched, expected)
        assert torch.equal(whole, x)


def test_there_and_back_is_where_it_was() -> None:
    x = values(6, 5, 4, seed=1)
    there_and_back = (Shard(0, 6), Shard(1, 5), Shard(0, 6))
    for switched, expected, _ in run_ranks(modules(4, x, *there_and_back), [x]):
        assert torch.equal(switched, expected)


def test_only_what_is_dealt_out_is_sent_and_nothing_is_padded() -> None:
    x = values(2, 4, 11, 3)
    to_heads, _ = (
        list(m.graph.find_nodes(op="call_function", target=TO_ALL))
        for m in modules(2, x, Shard(2, 6, before=5), Shard(1, 4))
    )
    assert sum(to_heads[0].args[2]) == 2 * 4 * 3 * 3  # three of six tokens, none of the prompt


TO_ALL = torch.ops._c10d_functional.all_to_all_single.default
