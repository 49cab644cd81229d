"""Head groups: attention whose keys have fewer heads than its queries runs along the heads of keys.

No axis of the graph is both: each head of keys serves several successive heads of queries. A rank
takes some heads of the keys, and the heads of the queries that they serve::

    q, k, v: tokens/2 -> 8 of 16 heads, 2 of 4 heads, 2 of 4 heads      on each of two ranks
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from pab_compile.passes.axes.attention_call import attention_call
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.walk import picks

from .detour import Crossing, Detour, main_shard
from .placement import HEADS, Axis
from .rules import judge
from .shard import Shard
from .verdict import Shards, Verdict, shape_of


def in_groups(
    axes: AxisTable, main: Axis, core: Sequence[fx.Node], shards: Shards, num_ranks: int
) -> Detour | str:
    """Plan an attention along the heads of its keys, with the heads of the queries they serve.

    Args:
        axes: axes of every tensor.
        main: the sharded axis.
        core: the mixing ops in graph order.
        shards: how all values before them are sharded.
        num_ranks: number of ranks.

    Returns:
        A detour along the heads, or why there is none; ``""`` if there are no such groups.
    """
    node = core[0]
    call = attention_call(node, axes.dims)
    if call is None or call.heads is None or len(core) > 1:
        return ""
    operands = dict.fromkeys((call.query, call.key, call.value))
    counts = {n: int(shape_of(n)[call.heads]) for n in operands}
    num = min(counts.values())
    if len(set(counts.values())) == 1 or any(count % num for count in counts.values()):
        return ""
    if num < num_ranks:
        return f"its keys have {num} heads only"
    if {n for n in node.all_input_nodes if n in shards} != set(operands):
        return "its queries, keys and values do not all have the axis"
    target = {n: Shard(call.heads, num, 1, count // num) for n, count in counts.items()}
    answer = judge(node, target)
    if isinstance(answer, str):
        return f"sharded along groups of heads, {answer}"
    verdicts = {node: answer}
    for pick in picks(node):
        index = pick.args[1]
        verdicts[pick] = Verdict((answer.outputs[index],))  # type: ignore[index]
    leaving = []
    for result in verdicts:
        if ir.tensor(result) is None or not result.users:
            continue
        here, back = verdicts[result].outputs[0], main_shard(axes, main, result, shards)
        if here is None or back is None:
            return f"its result does not have the axis {main.name} in one dimension"
        leaving.append(Crossing(result, here, back))
    entering = tuple(Crossing(n, shards[n], target[n]) for n in operands)
    own = frozenset[object]()
    return Detour(Axis(HEADS, num, own.__contains__), (node,), verdicts, entering, tuple(leaving))
