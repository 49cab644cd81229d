"""What is known about a DiT, independently of the compiler: how to build it, and what it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

# Some models ask for autocast to float32, which CPUs do not have and say so.
WHAT_MODELS_WARN_OF = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`"),
]


@dataclass(frozen=True)
class Dit:
    """A DiT of diffusers, small enough for a CPU.

    Sizes (batch, frames, tokens of a frame, prompt tokens, channels) are pairwise distinct, so that
    none can be taken for another.

    Attributes:
        name: short and unique.
        cls: name of the class in diffusers.
        config: constructor arguments.
        inputs: ``inputs(batch=, frames=, height=, width=, text=, seed=, dtype=)`` -> arguments of
            the forward, all with defaults.
        kinds: (pattern of module paths, kind) of every attention module; the first that matches.
        modality: ``video``, ``image``, ``audio`` or ``other``.
        mechanism: kind -> mechanism, where it is not ``sdpa``.
        notes: what is peculiar, for the table.
        clock: name of the timestep argument.
        latents: name of the denoised argument.
        sizes: the second resolution, as arguments of ``inputs``.
        options: options of the backend that this model needs.
        graphs: into how many graphs Dynamo breaks the forward; 1 where it does not.
        unused: pattern of attention modules that run, but whose results the model drops.
        unseen: pattern of attention modules that the compiler does not take for attention; plans
            that reuse attention only compute them at every step.
        computed: what ``explain()`` says of the graphs that are computed at every step.
        streams: sites per attention module, where its results never meet.
        fused: pattern of attention modules that hold an MLP too: only their attention is reused.
        unsupported: what the compiler's error says where it refuses the model.
        dtype: of the parameters.
        prepare: what is done to the model once it is built.
        switches: of ``torch.compiler.config``, what this model needs.
    """

    name: str
    cls: str
    config: Mapping[str, Any]
    inputs: Callable[..., dict[str, Any]]
    kinds: tuple[tuple[str, str], ...]
    modality: str
    mechanism: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    clock: str = "timestep"
    latents: str = "hidden_states"
    sizes: Mapping[str, int] = field(default_factory=lambda: {"height": 4, "width": 10})
    options: Mapping[str, Any] = field(default_factory=dict)
    graphs: int = 1
    unused: str = ""
    unseen: str = ""
    computed: str = ""
    streams: int = 1
    fused: str = ""
    unsupported: str = ""
    dtype: torch.dtype = torch.float32
    prepare: Callable[[torch.nn.Module], None] | None = None
    switches: Mapping[str, bool] = field(default_factory=dict)

    def kind_of(self, path: str) -> str | None:
        """True kind of the attention module at a path, or None where it is none."""
        return next((kind for pattern, kind in self.kinds if re.search(pattern, path)), None)

    def switched(self) -> AbstractContextManager[None]:
        """Where the model is compiled and called: with its switches on."""
        return torch.compiler.config.patch(dict(self.switches))


@dataclass(frozen=True)
class Sizes:
    """Sizes of one call's inputs, and the noise to fill them with."""

    batch: int = 2
    frames: int = 3
    height: int = 8
    width: int = 12
    text: int = 7
    seed: int = 0
    dtype: torch.dtype = torch.float32

    def noise(self, *shape: int, salt: int = 0) -> torch.Tensor:
        """Normal numbers that depend on shape, seed and salt only."""
        generator = torch.Generator().manual_seed(1000 * self.seed + 100 * salt + sum(shape))
        return torch.randn(*shape, generator=generator).to(self.dtype)

    def timestep(self, value: float = 500) -> torch.Tensor:
        """One timestep per video: integers for an integer."""
        return torch.full((self.batch,), value)


def inputs_of(
    make: Callable[[Sizes], dict[str, Any]], **defaults: int
) -> Callable[..., dict[str, Any]]:
    """The ``inputs`` of a description, from a function of the sizes."""

    def inputs(**sizes: Any) -> dict[str, Any]:
        return make(Sizes(**{**defaults, **sizes}))

    return inputs
