"""The trained Latte of the demo as a source for the command line. It makes videos of digits.

pab compare examples/digits_command_line.py --steps 20 -o compare.html
pab report examples/digits_command_line.py --plan fast --steps 20 --baseline --curves
"""

from __future__ import annotations

import digits
import torch

prompts = [3, 5, 8]


def load() -> digits.DigitsModel:
    return digits.load()


def call(target: digits.DigitsModel, prompt: int, num_steps: int) -> torch.Tensor:
    noise = digits.make_noise(1, seed=prompt)
    return digits.generate(target, torch.tensor([prompt]), noise, num_steps=num_steps)


def frames(target: digits.DigitsModel, result: torch.Tensor) -> torch.Tensor:
    """What pages show: the video, from black to white."""
    return (result[0, 0] + 1) / 2
