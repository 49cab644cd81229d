"""The DiT of ``your_own_dit.py`` as a source for the command line: ``pab explain`` and others.

pab explain examples/command_line.py
pab report examples/command_line.py --plan linear3 --steps 12 --baseline -o report.html
pab compare examples/command_line.py --plan quality --plan fast --steps 12
"""

from __future__ import annotations

from typing import Any

import torch
from your_own_dit import Painter, make_inputs

prompts = [1, 2, 3]


def load() -> torch.nn.Module:
    torch.manual_seed(0)
    return Painter(num_layers=2).eval().requires_grad_(False)


def inputs(target: Any) -> dict[str, torch.Tensor]:
    return make_inputs(batch=1)


def call(target: Any, prompt: int, num_steps: int) -> torch.Tensor:
    noise = torch.Generator().manual_seed(prompt)
    given = make_inputs(batch=1)
    x = torch.randn(given["x"].shape, generator=noise)
    for t in torch.linspace(1000, 1000 / num_steps, num_steps):
        x = x - target(x=x, t=t.expand(len(x)), prompt=given["prompt"]) / num_steps
    return x
