"""What a call gives and returns, where that is an object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor


@dataclass
class Prompt:
    """What a call knows of the prompt, where that is one argument."""

    text: Any = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    history: Tensor | None = None
    first: Tensor | None = None
    scale: Tensor | None = None


@dataclass
class Output:
    """What a model returns, where that is an object."""

    sample: Any


class NamedPrompt(NamedTuple):
    """A prompt as a named tuple."""

    text: Any
    mask: Tensor | None
    pooled: Tensor | None
    history: Tensor | None
    first: Tensor | None
    scale: Tensor | None


class NamedOutput(NamedTuple):
    """An output as a named tuple."""

    sample: Any
