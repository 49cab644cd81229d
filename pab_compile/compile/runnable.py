"""What runs a graph of a forward: the protocol, and graphs that compute at every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch

from pab_compile import dynamo
from pab_compile.passes.graph import autocast, ir
from pab_compile.passes.graph.join import Origin, Part
from pab_compile.passes.sites.site import Site
from pab_compile.plans.form import Form
from pab_compile.report.explanation import Finding
from pab_compile.runtime.forward import Forward, Ran


class AtSizes(Protocol):
    """Makes a program of one for other sizes."""

    def __call__(
        self, sizes: tuple[int, ...], origins: tuple[Origin | None, ...]
    ) -> Runnable | None:
        """The program for these sizes; None if the one for other sizes does not show it.

        Args:
            sizes: the open sizes of the graph, then those of the graphs that feed it.
            origins: where its inputs come from.
        """
        ...


class Restate(Protocol):
    """Compiles a graph again."""

    def __call__(self, names: Collection[str], clock: str, form: Form | None) -> Runnable:
        """The program for a form, if inputs of these names step as the timestep does."""
        ...


class Runnable(Ran, Protocol):
    """A graph of a forward, ready to run."""

    at_sizes: AtSizes | None

    def __call__(
        self,
        forward: Forward,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        restate: Restate,
    ) -> Any:
        """Run it in a forward.

        Args:
            forward: the call of the model.
            args: Dynamo's inputs.
            tensors: the tensors among them.
            restate: compiles the graph again if some of its inputs turn out to be stepping.
        """
        ...


class PlainProgram:
    """A graph that is computed at every step.

    Args:
        part: the captured graph, whose tensors ``function`` takes. None if it was not captured:
            then ``function`` takes Dynamo's inputs.
        function: computes the graph.
        finding: what was found in the graph, with the reason why nothing is reused.

    Attributes:
        at_sizes: makes the program for other open sizes, and for inputs of these origins; gives
            None where this one shows nothing.
    """

    def __init__(self, part: Part | None, function: Callable[..., Any], finding: Finding) -> None:
        self.part = part
        self.sites: Sequence[Site] = ()
        self.finding = finding
        self.at_sizes: AtSizes | None = None
        self._function = function

    def __call__(
        self,
        forward: Forward,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        restate: Restate,
    ) -> Any:
        """Compute the graph."""
        if self.part is None:
            outputs = self._function(*args)
        else:
            with dynamo.torchs_own_functions(), autocast.as_traced(self.part.graph_module):
                outputs = self._function(*tensors)
            outputs = written_back(self.part, tensors, outputs)
        forward.finish(self, tensors, outputs)
        return outputs


def written_back(
    part: Part | None, inputs: Sequence[torch.Tensor], outputs: Sequence[Any]
) -> Sequence[Any]:
    """Write to the inputs what the graph writes to them, and return the other outputs."""
    if part is None:
        return outputs
    written = ir.mutated_inputs(part.graph_module)
    for number, value in zip(written, outputs, strict=False):
        inputs[number].copy_(value)
    return outputs[len(written) :]
