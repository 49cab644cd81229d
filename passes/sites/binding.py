"""Binding times: when each node's value is known.

``CONSTANT`` (weights only) < ``PROMPT`` (the same at every step of a generation) < ``STEP``
(depends on the timestep) < ``LATENT`` (depends on what is denoised). The binding time of a node is
the latest of its inputs. It follows from the data flow.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import fx

from pab_compile.passes.axes.input_roles import in_one_list
from pab_compile.passes.errors import NoTimestepError, UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.number_inputs import sounds_like_time
from pab_compile.passes.graph.walk import reached

STATED_CLOCK = "clock"  # what this library states of a graph whose clock it knows
STATED_STEP = "step"
STATED_PROMPT = ("prompt", "held")  # "held" is the older word
_CLOCK_OPS = ("sin", "cos", "embedding")
_SHOWN = 4  # inputs that an error names


class Binding(enum.IntEnum):
    """When a value is known. A larger number is later."""

    CONSTANT = 0
    PROMPT = 1
    STEP = 2
    LATENT = 3


def bind(graph: fx.Graph, latents: frozenset[fx.Node], step_inputs: frozenset[fx.Node]) -> int:
    """Record the binding time of every node.

    Args:
        graph: a captured graph.
        latents: the placeholders that are denoised.
        step_inputs: placeholders that change at every step (``step_inputs``).

    Returns:
        The number of nodes whose binding was set or changed.
    """
    changed = 0
    for node in graph.nodes:
        when = _input_binding(node, latents, step_inputs)
        when = max([when, *(ir.binding(source) for source in node.all_input_nodes)])
        if ir.binding(node) is not when:
            ir.set_binding(node, when)
            changed += 1
    known = latents | step_inputs
    made = made_by_python(graph, lambda n: n not in known)
    for node in graph.nodes:
        ir.set_made(node, node in made)
    return changed


def made_by_python(graph: fx.Graph, is_made: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """The values that change only if Python code makes another tensor between two graphs.

    They are computed from weights, per-prompt inputs and such tensors alone, so that equal tensors
    give equal values.

    Args:
        graph: a graph with binding times.
        is_made: of the inputs that may change at every step, those that Python makes.
    """
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if ir.binding(node) != Binding.STEP:
            continue
        if node.op == "placeholder":
            is_found = is_made(node)
        else:
            is_found = ir.is_plain_call(node) and not ir.has_effect(node)
            is_found &= all(n in found or _is_early(n) for n in node.all_input_nodes)
        if is_found:
            found.add(node)
    return found


def _is_early(node: fx.Node) -> bool:
    """Whether a value is known before the steps. A graph that an op takes is no value."""
    when = ir.binding(node)
    return ir.is_subgraph(node) or (when is not None and when < Binding.STEP)


def _input_binding(
    node: fx.Node, latents: frozenset[fx.Node], step_inputs: frozenset[fx.Node]
) -> Binding:
    if node in latents:
        return Binding.LATENT
    if node in step_inputs or ir.is_eager(node) or ir.is_volatile(node) or ir.is_random(node):
        return Binding.STEP
    if node.op == "placeholder" and not ir.is_constant_input(node):
        return Binding.PROMPT
    return Binding.CONSTANT


def find_clock(graph: fx.Graph, latents: fx.Node, stated: Mapping[str, str]) -> fx.Node:
    """Find the timestep: an embedded input of one number, or one per batch row (and frame).

    Several inputs may have names that sound like time. Then the one called ``timestep`` is taken,
    or the one that is named after the latents. An input that is stated as ``"step"`` is the clock
    if no other one sounds like time and is embedded. Otherwise it only changes with the clock.

    Args:
        graph: a captured graph.
        latents: the placeholder that is denoised.
        stated: the user's ``axes`` option.

    Raises:
        NoTimestepError: no input can be the timestep.
        UnsupportedModelError: more than one input can be it.
    """
    inputs = [
        n
        for n in ir.placeholders(graph)
        if not (ir.is_constant_input(n) or ir.is_eager(n) or n is latents)
    ]
    for candidates in _clock_candidates(inputs, latents, stated):
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = ", ".join(repr(ir.source(n)) for n in candidates)
            raise UnsupportedModelError(
                f"The timestep is ambiguous: the inputs {names} all look like one. State which one "
                f'changes at every step: options={{"axes": {{"<input>": "step"}}}}.'
            )
    name, whole = repr(ir.source(latents)), "pab_compile.enable(pipe) does"
    if not inputs:
        raise NoTimestepError(
            f"No timestep was found: the graph has no input besides the latents {name}, so nothing "
            f"tells the step. If it is a part of a larger model, compile that model, as {whole}."
        )
    seen = [f"{ir.source(n)}{list(ir.shape(n) or ())}" for n in inputs]
    more = f" and {len(seen) - _SHOWN} more" if len(seen) > _SHOWN else ""
    raise NoTimestepError(
        "No timestep was found: no input is one number (or one per batch row) that is embedded. "
        f"Inputs besides the latents {name}: {', '.join(seen[:_SHOWN])}{more}.\n"
        f"If this is one block of a larger model, compile the whole model, as {whole}. "
        'Otherwise state the clock: options={"axes": {"<input>": "step"}}.'
    )


def _clock_candidates(
    inputs: Sequence[fx.Node], latents: fx.Node, stated: Mapping[str, str]
) -> Iterator[list[fx.Node]]:
    """Inputs that may be the clock, the most certain first."""
    rows = _num_rows(inputs, latents)
    scalars = [n for n in inputs if _is_scalar_per_row(n, rows)]
    yield [n for n in inputs if stated.get(ir.source(n)) == STATED_CLOCK]
    declared = [n for n in scalars if stated.get(ir.source(n)) == STATED_STEP]
    timely = [n for n in scalars if _sounds_like_time(n)]
    embedded = [n for n in timely if _reaches(n, _CLOCK_OPS)]
    if declared:
        yield [n for n in declared if n in timely]
        certain = [n for n in embedded if not _is_stated_prompt(n, stated)]
        yield [n for n in certain if ir.source(n).lower() == "timestep"]
        yield certain if len(certain) == 1 else []
        yield declared
    yield [n for n in embedded if ir.source(n).lower() == "timestep"]
    yield [n for n in embedded if ir.source(n).startswith(ir.source(latents))]
    yield embedded
    yield timely
    yield [n for n in scalars if _reaches(n, _CLOCK_OPS) and not _is_stated_prompt(n, stated)]


def step_inputs(graph: fx.Graph, clock: fx.Node, stated: Mapping[str, str]) -> frozenset[fx.Node]:
    """All inputs that change at every step.

    These are the clock, other inputs of its shape that sound like time (the end of the step, the
    timestep of another stream), and the inputs that the user stated as ``"step"``. If the clock has
    a number per token, others may have one per batch row.
    """
    inputs = [n for n in ir.placeholders(graph) if not ir.is_constant_input(n)]
    declared = [n for n in inputs if stated.get(ir.source(n)) in (STATED_STEP, STATED_CLOCK)]
    timely = [
        n
        for n in inputs
        if _is_leading_part(ir.shape(n), ir.shape(clock))
        and _sounds_like_time(n)
        and not _is_stated_prompt(n, stated)
    ]
    return frozenset([clock, *declared, *timely])


def _is_leading_part(shape: tuple[int, ...] | None, whole: tuple[int, ...] | None) -> bool:
    """Whether a shape is another one, or its first dimensions."""
    if not shape or not whole:
        return shape == whole
    return shape == whole[: len(shape)]


def _is_stated_prompt(node: fx.Node, stated: Mapping[str, str]) -> bool:
    """Whether the user says that an input is the same at every step."""
    return stated.get(ir.source(node)) in STATED_PROMPT


def _num_rows(inputs: Sequence[fx.Node], latents: fx.Node) -> int:
    """Rows of the batch: those of the latents, or their entries if they are a list."""
    entries = sum(in_one_list(node, latents) for node in inputs)
    return entries + 1 if entries else next(iter(ir.shape(latents) or (1,)))


def _is_scalar_per_row(node: fx.Node, batch: int) -> bool:
    """Whether an input is one number, or one for every row of the batch."""
    shape = ir.shape(node)
    if shape in ((), (1,), (batch,), (1, 1), (batch, 1)):
        return True
    per_frame = shape is not None and len(shape) >= 2 and shape[0] in (1, batch)
    per_entry = shape is not None and len(shape) == 1
    return (per_frame or per_entry) and _sounds_like_time(node) and _reaches(node, _CLOCK_OPS)


def _sounds_like_time(node: fx.Node) -> bool:
    return sounds_like_time(ir.source(node))


def _reaches(node: fx.Node, op_names: tuple[str, ...]) -> bool:
    """Whether a path leads to an op of these names, along tensors of at most three dimensions."""

    def readers(node: fx.Node) -> list[fx.Node]:
        calls = [user for user in node.users if user.op == "call_function"]
        return [call for call in calls if len(ir.shape(call) or ()) <= 3]

    return any(ir.is_call(found, *op_names) for found in reached([node], readers))
