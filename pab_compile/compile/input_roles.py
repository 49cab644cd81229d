"""Input roles: which of the caller's tensors are latents, clock and prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from pab_compile.options import Options
from pab_compile.passes.axes.stated import is_named
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.join import Part
from pab_compile.passes.program import Program
from pab_compile.runtime.forward import callers

if TYPE_CHECKING:
    from .request import Request


@dataclass(frozen=True)
class InputRoles:
    """What the inputs of a graph, and of the graphs that feed it, mean to the model's caller.

    Attributes:
        latents: name of the tensor that is denoised.
        clock: name of the timestep.
        prompt_inputs: names of the per-prompt inputs.
        may_step: those of them that may turn out to change at every step.
        stepping: names of other inputs that change at every step.
        sees_all: whether the graph is the whole forward, so that other inputs do not matter.
        is_blind: whether Python code between the graphs makes some of its inputs, or the graph has
            no attention that could show what the prompts are. Then every input of the caller
            distinguishes lanes. A graph that is the whole forward is never blind.
        weights: positions of the weights, which distinguish models that share code.
        by_name: whether only names show the latents and the clock.
    """

    latents: str
    clock: str
    prompt_inputs: tuple[str, ...]
    may_step: tuple[str, ...]
    stepping: tuple[str, ...]
    sees_all: bool
    is_blind: bool
    weights: tuple[int, ...]
    by_name: bool = False

    def prompts_in(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the forward's inputs that stay the same during a generation."""
        if self.sees_all:
            return {name: inputs[name] for name in self.prompt_inputs}
        others = {self.latents, self.clock, *self.stepping}
        others |= {callers(name) for name in others}
        return {name: tensor for name, tensor in inputs.items() if not is_named(name, others)}


def roles_of(program: Program, part: Part, request: Request, options: Options) -> InputRoles:
    """What the inputs are; asked before the rewrite, which changes the graph."""
    inputs = ir.placeholders(part.graph_module.graph)
    written = ir.mutated_inputs(part.graph_module)
    weights = tuple(
        number
        for number, node in enumerate(inputs)
        if ir.is_constant_input(node) and number not in written
    )
    if program.axes is None and request.placed is not None:
        return replace(request.placed, sees_all=False, weights=weights)
    if program.axes is None:
        shown = request.shown()
        assert shown is not None
        return replace(
            shown,
            prompt_inputs=program.prompt_inputs,
            may_step=program.may_step,
            sees_all=False,
            is_blind=True,
            weights=weights,
            by_name=True,
        )
    stated = (name for name, role in options.axes.items() if role == "step")
    has_attention = any(site.can_broadcast and site.kind != "mlp" for site in program.sites)
    return InputRoles(
        latents=program.latents,
        clock=program.clock,
        prompt_inputs=program.prompt_inputs,
        may_step=program.may_step,
        stepping=(*program.stepping, *stated),
        sees_all=request.alone,
        is_blind=(program.has_eager_inputs or not has_attention) and not request.alone,
        weights=weights,
    )
