"""Building a DiT so that nothing in it is switched off, and running it."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import diffusers
import pytest
import torch
from torch.utils import _pytree as pytree

from .spec import Dit


def build(dit: Dit, seed: int = 0) -> torch.nn.Module:
    """The model in eval mode, every parameter drawn anew: gates that start at zero hide nothing."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # diffusers deprecates parts that its own models are made of.
        warnings.simplefilter("ignore", FutureWarning)
        model = model_class(dit.cls)(**dit.config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if parameter.ndim < 2:  # biases, scales of norms
            drawn = 0.2 * drawn + float(parameter.float().mean() > 0.5)
        else:
            drawn = drawn * min(0.5, parameter[0].numel() ** -0.5)
        parameter.copy_(drawn)
    if dit.prepare is not None:
        dit.prepare(model)
    return torch.nn.Module.to(model, dit.dtype)


def model_class(name: str) -> type[torch.nn.Module]:
    """A class of diffusers by its name, whether or not the package exports it."""
    if hasattr(diffusers, name):
        return getattr(diffusers, name)
    from .catalogue import transformer_classes

    if name not in transformer_classes() and sys.version_info < (3, 11):
        pytest.skip(f"the last diffusers for Python 3.10 has no {name}")
    return transformer_classes()[name]


def run(model: Any, **inputs: Any) -> tuple[torch.Tensor, ...]:
    """Call a model, compiled or not; every tensor that it returns."""
    with torch.no_grad():
        outputs = model(**inputs)
    if hasattr(outputs, "to_tuple"):
        outputs = outputs.to_tuple()
    return tuple(leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor))


class Denoising:
    """The inputs of a denoising loop, step by step.

    The timestep is a view into a scheduler's table, as in the pipelines; the latents walk a path
    that does not depend on what the model returns, so that errors do not add up; everything else
    is the same at every step.

    Args:
        dit: the model's description.
        num_steps: length of the table.
        sizes: arguments of ``dit.inputs``.
    """

    def __init__(self, dit: Dit, num_steps: int = 10, **sizes: int) -> None:
        self.num_steps = num_steps
        self._clock, self._latents = dit.clock, dit.latents
        self._inputs = dit.inputs(**sizes)
        self._others = dit.inputs(**sizes, seed=1)[dit.latents]
        given = self._inputs[dit.clock]
        last = float(given.float().max())
        table = torch.linspace(1.9, 0.1, num_steps) * last
        self.table = table.to(given.dtype)

    def at(self, step: int) -> dict[str, Any]:
        """Arguments of the call at a step."""
        angle = torch.tensor(0.15 * step)
        latents = pytree.tree_map(
            lambda a, b: (angle.cos() * a + angle.sin() * b).to(a.dtype),
            self._inputs[self._latents],
            self._others,
        )
        timestep = self.table[step].expand(self._inputs[self._clock].shape)
        return {**self._inputs, self._latents: latents, self._clock: timestep}

    def run(self, model: Any) -> list[tuple[torch.Tensor, ...]]:
        """What a model, compiled or not, returns at every step."""
        return [run(model, **self.at(step)) for step in range(self.num_steps)]

    def predictions(self, model: Any) -> torch.Tensor:
        """The first tensor of every step."""
        return torch.stack([first for first, *_ in self.run(model)])
