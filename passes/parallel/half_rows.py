"""Half of the rows of a batch: the graph that computes them alone.

It takes the inputs of the whole batch and yields the outputs of one half::

    %x = conv(%latents, ...)              %mine = slice(%latents, 0, 1, 2)      # the second half
    ...                                   %x = conv(%mine, ...)
    return %out                           ...
                                          return %out

What reads no latents, such as the modulation, is computed for all rows.
That no op mixes the halves is shown op by op, as for ranks that share a batch (``split_batch``).
"""

from __future__ import annotations

from torch import fx

from pab_compile.passes.axes.names import BATCH
from pab_compile.passes.errors import ShardingError
from pab_compile.passes.graph import ir
from pab_compile.passes.program import Program

from .layout import lay_out
from .localise import localise
from .placement import place
from .shard import Ranks, Shard
from .split_batch import rows_of


def half_rows(program: Program, half: int) -> fx.GraphModule:
    """The graph of one half of the rows.

    Args:
        program: a captured graph with its sites; not modified.
        half: 0 for the first half, 1 for the second one.

    Raises:
        ShardingError: an op mixes the halves, or an output does not have the rows outermost.
    """
    module, axes = program.graph_module, program.inferred_axes
    axis, returned = rows_of(axes), ir.outputs(module.graph)
    rows = Shard(0, axis.size)
    if ir.mutated_inputs(module):
        raise ShardingError("The model writes to its buffers or inputs.")
    if axis.size % 2 or place(axes, axes.latents, axis) != rows:
        raise ShardingError(f"The latents have {axis.size} rows, or the batch is not outermost.")
    layout = lay_out(module.graph, axes, program.mixers, axis, 2, detours=False)
    output = ir.output_node(module.graph)
    if layout.gathered != {output} or any(layout.shards.get(node) != rows for node in returned):
        raise ShardingError("An output of the model does not have one part per row.")
    local = localise(module, layout, Ranks(2, half, BATCH))
    found = local.graph_module
    parts = {node: local.nodes[node] for node in returned}
    end = ir.output_node(found.graph)
    end.args = (fx.map_arg(output.args[0], parts.__getitem__),)
    for node in reversed(list(found.graph.nodes)):
        if node.op == "call_function" and not node.users:
            found.graph.erase_node(node)
    found.graph.lint()
    found.recompile()
    return found
