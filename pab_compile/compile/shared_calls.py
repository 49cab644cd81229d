"""Shared calls: runs a call of the model, on all ranks or on the half that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from pab_compile.calibration.stopwatch import now
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Part
from pab_compile.ranks.halves import Turn
from pab_compile.runtime.generation import Place
from pab_compile.runtime.lane import Lane
from pab_compile.runtime.stats import StepRecord
from pab_compile.runtime.weights import MarksOf

from .executor import Executor


def run_call(
    executor: Executor,
    tensors: Sequence[torch.Tensor],
    place: Place | None,
    part: Part | None,
    prompts: Sequence[str],
    weights: Sequence[int],
    marks_of: MarksOf,
) -> Sequence[Any]:
    """What a graph returns in a call.

    Args:
        executor: runs the graph.
        tensors: its inputs.
        place: where the call belongs; None computes everything, on all ranks.
        part: the captured graph.
        prompts: names of the inputs that each call of a step has of its own.
        weights: positions of the weights.
        marks_of: gives the marks of weights as they are now.
    """
    together = executor.together
    if place is None or part is None or together is None or together.halves is None:
        return executor.run(tensors, place)

    def run(lane: Lane, inputs: Sequence[torch.Tensor]) -> Sequence[Any]:
        here = place
        if lane is not place.lane:
            generation = place.generation
            here = Place(generation, lane, StepRecord(generation.step, started=now()))
            own = [inputs[position] for position in weights]
            lane.drop_outdated(executor.identity, own, marks_of)
        return executor.run(inputs, here, is_agreed=True)

    names = {*prompts} - place.generation.lanes.stepping
    turn = Turn(
        place.generation,
        place.lane,
        executor.identity,
        executor.agree(tensors, place),
        frozenset(number for number, name in together.inputs.items() if name in names),
        together.inputs,
        run,
        lambda: _like_outputs(part.graph_module.graph, tensors[0].device),
        place.record.exchanged.append,
    )
    return together.halves.outputs(turn)


def _like_outputs(graph: fx.Graph, device: torch.device) -> list[Any]:
    """Tensors like those that a graph returns, and what it returns besides as it is."""
    found: list[Any] = []
    for returned in ir.output_node(graph).args[0]:  # type: ignore[union-attr]
        value = ir.tensor(returned) if isinstance(returned, fx.Node) else None
        like = None if value is None else torch.empty(value.shape, dtype=value.dtype, device=device)
        found.append(returned if like is None else like)
    return found
