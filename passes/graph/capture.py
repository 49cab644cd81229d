"""Capture: from a Dynamo graph to a functional, pre-dispatch ATen graph with static shapes.

``scaled_dot_product_attention``, ``linear`` and ``layer_norm`` stay single nodes. Inputs keep their
order. The graph is the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.passes.errors import NotTracedError

from . import ir
from .autocast import cast_explicitly, has_autocast
from .autocast import off as autocast_off
from .chosen_kernels import state_kernels
from .constants import check_constants, is_fake
from .folding import fold_mapped_constants
from .fused import take_apart
from .inlining import inline_calls
from .inputs import Inputs, with_constant_numbers
from .kept import place_modules
from .noise import remove_noise
from .refusals import mapped_line, refuse_loops, refuse_other_memory, refuse_shared_weights
from .rejoin import rejoin
from .round_trips import round_trips
from .sizes_only import read_sizes_only
from .trace import trace
from .tracing import fake
from .unmapping import unmap
from .unscatter import unscatter
from .whole_sums import whole_sums
from .wrapped import take_plain

Tracer = Callable[[fx.GraphModule, Sequence[torch.Tensor]], fx.GraphModule]
_DYNAMIC_SHAPE = "Dynamic shape operator"
_HOW_TO_KEEP = (
    "torch.compiler.config.capture_dynamic_output_shape_ops = True, set before the model is "
    "compiled, keeps it in the graph"
)


def capture(
    dynamo_graph: fx.GraphModule, args: Sequence[Any], tracer: Tracer = trace
) -> fx.GraphModule:
    """Trace a Dynamo graph into a functional, pre-dispatch ATen graph.

    Args:
        dynamo_graph: what Dynamo hands to a backend. Not modified.
        args: one value per placeholder: tensors (real, meta or fake) and numbers. Numbers, such as
            dynamic sizes, become constants. So the result has static shapes. Its placeholders are
            the other inputs in order (see ``Inputs``).
        tracer: does what ``trace`` does.

    Returns:
        A graph module without dropout, metadata assertions and dead code. Every placeholder has
        the caller's name and says whether it is a parameter (``ir.source``,
        ``ir.is_constant_input``). Every call keeps its module path and source line.

    Raises:
        NotTracedError: torch cannot trace the graph, or not what it casts under autocast, or it
            gives a tensor other memory.
        UnsupportedModelError: it writes to a tensor that the graph holds.
        InvariantError: a constant of the captured graph has no numbers.
    """
    refuse_other_memory(dynamo_graph)
    refuse_loops(dynamo_graph)
    inputs = Inputs.of(dynamo_graph, args)
    refuse_shared_weights(args, inputs.wrapped)
    static_graph = with_constant_numbers(dynamo_graph, inputs, args)
    inline_calls(static_graph)
    state_kernels(static_graph)
    fold_mapped_constants(static_graph)
    if inputs.wrapped:
        take_plain(static_graph, inputs.given_tensors(args))
    unmap(static_graph, inputs.tensors(args))
    try:
        if has_autocast(static_graph.graph):
            static_graph = cast_explicitly(static_graph, fake(inputs.tensors(args)))
            with autocast_off():
                captured = tracer(static_graph, inputs.tensors(args))
            ir.set_explicit_casts(captured)
        else:
            captured = tracer(static_graph, inputs.tensors(args))
    except (RuntimeError, NotImplementedError) as error:
        why = _why_not_captured(inputs, mapped_line(static_graph))
        said = str(error).splitlines()[0].rstrip(".")
        raise NotTracedError(f"The graph could not be captured: {said}. {why}") from error
    named = zip(ir.placeholders(captured.graph), inputs.sources, inputs.holders, strict=True)
    for node, (name, constant), holders in named:
        ir.set_source(node, name)
        ir.set_holders(node, holders)
        ir.set_constant_input(node, constant)
    read_sizes_only(captured.graph)
    remove_noise(captured)
    round_trips(captured)
    unscatter(captured)
    rejoin(captured)
    whole_sums(captured)
    take_apart(captured)
    place_modules(captured)
    if not any(map(is_fake, inputs.tensors(args))):  # of a fake model, constants are fake too
        check_constants(captured)
    return captured


def _why_not_captured(inputs: Inputs, mapped: str) -> str:
    if mapped:
        return (
            f"The model calls torch.vmap ({mapped}), and this call cannot be made plain ops: it "
            "writes to what it is given, maps floating numbers under autocast, or needs values. "
            "Write the function for the whole batch, or call it before the model."
        )
    if not inputs.wrapped:
        return (
            "Sizes that depend on values cannot be traced if these are random, written to in place "
            "or made under autocast. Compute them before the call of the model, or leave this "
            "model to another backend."
        )
    first = next(iter(inputs.wrapped.values()))
    return (
        f"{len(inputs.wrapped)} tensor(s) of the model are made of other tensors ({first}), and "
        "their class must compute whole torch functions (__torch_function__) from plain tensors, "
        "as the quantised weights of torchao do."
    )


def break_reason(dynamo_graph: fx.GraphModule) -> str:
    """One line that says why Dynamo broke the forward after this graph, or ``""``."""
    reason = getattr(dynamo_graph, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    where = reason.user_stack[-1] if reason.user_stack else None
    place = f" ({where.filename.rsplit('/', 1)[-1]}:{where.lineno})" if where else ""
    line = reason.reason.strip().splitlines()[0]
    hint = f"; {_HOW_TO_KEEP}" if line == _DYNAMIC_SHAPE else ""
    return f"{line}{place}{hint}"
