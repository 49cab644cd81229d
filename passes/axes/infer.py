"""Axis inference: finds what every dimension of every tensor in a graph is.

The graph is walked once. Every dimension becomes an ordered product of atoms
(``passes.axes.atoms``), which one rule per op carries on (``passes.axes.rules``). Only structure
decides: equal sizes are never taken for equal axes. At the end the atoms get the names of the
inputs that they come from.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.kept import notes_of
from pab_compile.passes.graph.origin import source_line

from .atoms import seed, size
from .input_layout import check_stated, find_latents
from .input_roles import USUAL_NAME, find_siblings, sounds_like_latents
from .names import CHANNEL, Namer
from .naming import InputNaming
from .rules import dims_of_call
from .table import AxisTable
from .trace import Dims, Outputs, Trace, anew, output_shapes, shape_of


def infer_axes(graph_module: fx.GraphModule, stated: Mapping[str, str] | None = None) -> AxisTable:
    """Find the axes of every tensor in a captured graph.

    Args:
        graph_module: Functional ATen graph whose nodes carry fake tensors.
        stated: Axes of inputs as the user knows them, ``{"hidden_states": "b c t h w"}``. The
            values ``"step"``, ``"prompt"`` and ``"held"`` are about time and are ignored.

    Raises:
        StatedAxesError: A stated input does not exist or has another rank.
        UnsupportedModelError: No input looks like latents.
    """
    graph = graph_module.graph
    inputs = [n for n in ir.placeholders(graph) if not ir.is_constant_input(n)]
    given = check_stated(inputs, stated or {})
    main = [i for i, node in enumerate(inputs) if _has_tokens(node) or ir.source(node) in given]
    trace = _traced(graph, inputs, main)
    if not any(i in trace.feeds[node] for node in ir.outputs(graph) for i in main):
        flat = [i for i, node in enumerate(inputs) if _is_flat_latents(node)]
        main = sorted({*main, *flat})
        trace = _traced(graph, inputs, main) if flat else trace
    written = len(ir.mutated_inputs(graph_module))  # the graph returns these before its outputs
    returned = [node for node in ir.outputs(graph) if trace.of(node)]
    outputs = [node for node in ir.outputs(graph)[written:] if trace.of(node)] or returned
    latents = find_latents(inputs, outputs, main, given, trace)
    naming = InputNaming(inputs, main, given, latents, trace)
    naming.name_all()
    siblings = find_siblings(inputs, main, latents, outputs, trace)
    questions = _open_questions(trace, naming.namer)
    notes = dict.fromkeys((*naming.notes, *notes_of(graph), *questions))
    table = naming.token_axes, tuple(notes), trace.dims, naming.namer
    return AxisTable(inputs[latents], siblings, *table)


def _has_tokens(node: fx.Node) -> bool:
    """Whether an input can have token axes: a floating tensor of rank 3 or more.

    What Python code made between two graphs may be flat: packed tokens, even with their channels.
    """
    tensor = ir.tensor(node)
    least = 1 if ir.is_eager(node) else 3
    return tensor is not None and tensor.is_floating_point() and tensor.ndim >= least


def _is_flat_latents(node: fx.Node) -> bool:
    """Whether an input without a batch, ``[tokens, channels]``, is named as latents are.

    This is for models that get the tokens of all videos in one row.
    """
    tensor = ir.tensor(node)
    is_flat = tensor is not None and tensor.is_floating_point() and tensor.ndim == 2
    return is_flat and sounds_like_latents(ir.source(node)) == USUAL_NAME and not ir.is_eager(node)


def _traced(graph: fx.Graph, inputs: list[fx.Node], main: list[int]) -> Trace:
    """The axes of all tensors, if some inputs have token axes of their own."""
    trace = Trace(main=frozenset(main))
    _walk(graph, inputs, trace)
    return trace


def _walk(graph: fx.Graph, inputs: list[fx.Node], trace: Trace) -> None:
    """Fill in the axes of every node, in order."""
    numbers = {node: number for number, node in enumerate(inputs)}
    for node in graph.nodes:
        fed = frozenset[int]().union(*(trace.feeds[arg] for arg in node.all_input_nodes))
        trace.feeds[node] = fed | {numbers[node]} if node in numbers else fed
        val = ir.value(node)
        shape = shape_of(node)
        if node in numbers and shape is not None:
            trace.dims[node] = tuple(seed(n, numbers[node], i) for i, n in enumerate(shape))
        elif node.op != "call_function":
            cached = ir.is_volatile(node)
            trace.dims[node] = None if shape is None else anew(shape, cached=cached)
        elif ir.is_getitem(node):
            several = trace.dims.get(node.args[0])
            trace.dims[node] = several[node.args[1]] if isinstance(several, list) else None
        elif shape is not None or isinstance(val, (list, tuple)):
            trace.dims[node] = _checked(node, trace, val)


def _checked(node: fx.Node, trace: Trace, val: object) -> Dims | Outputs | None:
    """Axes of a call; new ones where sizes are known only at run time."""
    vals = list(val) if isinstance(val, (list, tuple)) else [val]
    shapes = output_shapes(node)
    blind = any(
        isinstance(ir.value(arg), torch.Tensor) and trace.dims.get(arg) is None
        for arg in node.all_input_nodes
    )
    if blind or any(
        s is None and isinstance(v, torch.Tensor) for s, v in zip(shapes, vals, strict=True)
    ):
        trace.unknown.append(node)
        found: Outputs = [None if s is None else anew(s) for s in shapes]
    else:
        result = dims_of_call(trace, node)
        found = result if isinstance(result, list) else [result]
    for index, (dims, shape) in enumerate(zip(found, shapes, strict=True)):
        got = None if dims is None else tuple(size(dim) for dim in dims)
        if got != shape:
            trace.unknown.append(node)
            found[index] = None if shape is None else anew(shape)
    return found if isinstance(val, (list, tuple)) else found[0]


def _open_questions(trace: Trace, namer: Namer) -> list[str]:
    """What the rules could not decide about axes that have names."""
    notes: list[str] = []
    for node, left, right in trace.clashes:
        where = source_line(node) or node.name
        a, b = namer.roles(left), namer.roles(right)
        if not right and len(set(a) - {CHANNEL}) > 1:
            notes.append(f"a view cuts across {'*'.join(a)}; its axes are mixed ({where})")
        elif a and b and a != b:
            notes.append(f"{'*'.join(a)} meets {'*'.join(b)}; kept apart ({where})")
    for target in dict.fromkeys(str(node.target) for node in trace.guessed):
        notes.append(
            f"{target} is not known: taken for an attention, since it reads three tensors of one "
            "head layout, each made by a projection, and a projection reads its result"
        )
    for node in trace.unknown:
        if trace.feeds[node]:
            where = source_line(node) or node.name
            notes.append(f"no axis rule for {node.target}: its axes are unnamed ({where})")
    return notes
