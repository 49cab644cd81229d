"""Which op carries axes by which rule.

A rule takes the state of the inference and a node, and returns the dimensions of the node's
tensor. For an op with several outputs it returns a list of them. ``RULES`` says which op has which
rule. Products and whole attentions are identified by their computation
(``passes.graph.contractions``). Every other op is elementwise with broadcasting.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.contractions import contraction

from . import collectives as axis_collectives
from . import patches as axis_patches
from . import shapes as axis_shapes
from . import sums as axis_sums
from . import writes as axis_writes
from .atoms import Dim, size
from .attention_call import attention_call
from .shapes import carried
from .trace import Dims, Outputs, Trace, anew, first, output_shape, output_shapes

Rule = Callable[[Trace, fx.Node], Dims | Outputs]

_RESAMPLING = ("upsample_", "_upsample", "avg_pool", "max_pool", "adaptive_", "_adaptive_")


def dims_of_call(trace: Trace, node: fx.Node) -> Dims | Outputs:
    """Axes of the outputs of an op, from those of its operands."""
    if (call := attention_call(node, trace.of)) is not None:
        if call.guessed:
            trace.guessed.append(node)
        return axis_sums.attention(trace, node, call)
    if (spec := contraction(node)) is not None:
        return axis_sums.product(trace, node, spec)
    name = ir.op_name(node)
    if name.startswith(_RESAMPLING):
        rule = _resample
    else:
        rule = RULES.get(name, elementwise)
    return rule(trace, node)


def _resample(trace: Trace, node: fx.Node) -> Dims | Outputs:
    val = ir.value(node)
    if isinstance(val, (list, tuple)):
        dims = trace.of(first(node))
        return [None if s is None else carried(dims, s) for s in output_shapes(node)]
    return axis_sums.resample(trace, node)


def create(trace: Trace, node: fx.Node) -> Dims:
    """Factories: their sizes do not show what the axes are."""
    del trace
    return anew(output_shape(node))


def outer(trace: Trace, node: fx.Node) -> Dims:
    """All pairs of two vectors."""
    left, right = node.args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    return (*trace.of(left), *trace.of(right))


def meshgrid(trace: Trace, node: fx.Node) -> Outputs:
    """The grid of some vectors. ``xy`` indexing swaps the first two."""
    axes = [trace.of(arg)[0] if trace.of(arg) else () for arg in ir.argument(node, 0, "tensors")]
    if ir.argument(node, 1, "indexing", "ij") == "xy" and len(axes) > 1:
        axes[0], axes[1] = axes[1], axes[0]
    return [tuple(axes)] * len(axes)


def elementwise(trace: Trace, node: fx.Node) -> Dims | Outputs:
    """Ops without a rule: operands broadcast against one another."""
    val = ir.value(node)
    operands = trace.tensors(node)
    if isinstance(val, (list, tuple)):
        return _several(trace, node, operands)
    shape = output_shape(node)
    aligned = [n for n in operands if _broadcasts(trace.of(n), shape)]
    if operands and len(aligned) == len(operands):
        out: list[Dim] = []
        for back in range(-len(shape), 0):
            pairs = [(trace.of(n)[back], n) for n in operands if len(trace.of(n)) >= -back]
            out.append(trace.meet(node, pairs, shape[back]))
        return tuple(out)
    for operand in operands:
        if tuple(size(dim) for dim in trace.of(operand)) == shape:
            return trace.of(operand)
    trace.unknown.append(node)
    return carried(trace.of(operands[0]), shape) if len(operands) == 1 else anew(shape)


def _several(trace: Trace, node: fx.Node, operands: list[fx.Node]) -> Outputs:
    out: Outputs = []
    for shape in output_shapes(node):
        same = [n for n in operands if tuple(size(d) for d in trace.of(n)) == shape]
        out.append(trace.of(same[0]) if same else (None if shape is None else anew(shape)))
        if not same and shape:
            trace.unknown.append(node)
    return out


def _broadcasts(dims: Dims, shape: tuple[int, ...]) -> bool:
    return len(dims) <= len(shape) and all(
        size(dim) in (1, n) for dim, n in zip(reversed(dims), reversed(shape), strict=False)
    )


def run_module(trace: Trace, node: fx.Node) -> Dims:
    """A module that is kept whole: the axes of the operand whose shape its result has."""
    tensors: list[fx.Node] = node.args[0]  # type: ignore[assignment]
    return trace.of(tensors[int(node.args[3])])  # type: ignore[arg-type]


def alike(trace: Trace, node: fx.Node) -> Dims | Outputs:
    """Norms: the axes of the first operand. Scales and statistics have no influence."""
    val = ir.value(node)
    dims = trace.of(first(node))
    if isinstance(val, (list, tuple)):
        shapes = output_shapes(node)
        return [dims, *(None if s is None else anew(s) for s in shapes[1:])]
    return dims


def _table(rules: dict[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


RULES = _table(
    {
        axis_shapes.view: "view reshape _unsafe_view flatten unflatten view_copy _reshape_alias",
        axis_shapes.unsqueeze: "unsqueeze",
        axis_shapes.squeeze: "squeeze",
        axis_shapes.permute: "permute",
        axis_shapes.transpose: "transpose t numpy_T mT mH adjoint swapaxes swapdims",
        axis_shapes.movedim: "movedim moveaxis",
        axis_shapes.complex_pairs: "view_as_complex view_as_real",
        axis_shapes.expand: "expand expand_as broadcast_to",
        axis_shapes.repeat: "repeat tile",
        axis_shapes.repeat_interleave: "repeat_interleave",
        axis_shapes.cat: "cat concat concatenate",
        axis_shapes.stack: "stack",
        axis_shapes.divide: (
            "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes "
            "unsafe_chunk"
        ),
        axis_shapes.unbind: "unbind",
        axis_shapes.select: "select",
        run_module: "run_module",
        axis_shapes.slice_: "slice",
        axis_shapes.narrow: "narrow",
        axis_shapes.pad_sequence: "pad_sequence",
        axis_writes.slice_scatter: "slice_scatter",
        axis_writes.select_scatter: "select_scatter",
        axis_shapes.pad: (
            "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d "
            "replication_pad1d replication_pad2d replication_pad3d"
        ),
        axis_shapes.index: "index _unsafe_index",
        axis_shapes.index_select: "index_select",
        axis_shapes.resized: "gather take_along_dim as_strided diff reduce_scatter_tensor",
        axis_shapes.embedding: "embedding",
        axis_writes.scattered: "index_copy index_put index_add scatter scatter_add scatter_reduce",
        axis_sums.reduce: (
            "mean sum nansum prod amax amin max min argmax argmin std var var_mean std_mean any "
            "all logsumexp norm linalg_vector_norm median count_nonzero aminmax"
        ),
        axis_sums.convolution: (
            "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"
        ),
        axis_patches.pixel_shuffle: "pixel_shuffle",
        axis_patches.pixel_unshuffle: "pixel_unshuffle",
        axis_patches.unfold: "unfold",
        axis_patches.im2col: "im2col",
        axis_patches.col2im: "col2im",
        alike: (
            "layer_norm native_layer_norm group_norm native_group_norm rms_norm batch_norm "
            "native_batch_norm instance_norm _fused_rms_norm "
            "index_fill masked_scatter sort cumsum"
        ),
        axis_collectives.exchange: "all_to_all_single",
        axis_collectives.gather: "all_gather_into_tensor",
        outer: "outer ger",
        meshgrid: "meshgrid",
        create: (
            "arange linspace full zeros ones empty eye rand randn randint randperm scalar_tensor "
            "new_zeros new_ones new_full new_empty tril_indices triu_indices"
        ),
    }
)
