"""What one of several ranks can do otherwise than the others: before a generation, and in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import pab_compile
from helpers.latte import Loop, ModelCall, Moment, ddim_timesteps, draw_latents, draw_prompt

Change = Callable[[Loop, int], None]
"""Changes a loop. The number draws by how much."""


class Cancelled(Exception):
    """A rank breaks a generation off, outside of the model."""


def _latents(loop: Loop, seed: int) -> None:
    loop.latents = draw_latents(100 + seed)


def _one_element(loop: Loop, seed: int) -> None:
    loop.latents = loop.latents.clone()
    flat = loop.latents.view(-1)
    flat[seed % flat.numel()] += 1e-3


def _prompt(loop: Loop, seed: int) -> None:
    loop.prompt = loop.prompt.clone()
    loop.prompt.view(-1)[seed % loop.prompt.numel()] += 0.1


def _length(loop: Loop, seed: int) -> None:
    length = 2 + seed % 3
    loop.prompt, loop.null_prompt = loop.prompt[:, :length], loop.null_prompt[:, :length]


def _steps(loop: Loop, seed: int) -> None:
    loop.timesteps = ddim_timesteps(len(loop.timesteps) + 1 + seed % 3)


def _timesteps(loop: Loop, seed: int) -> None:
    loop.timesteps = loop.timesteps - (loop.timesteps > 0).long() * (1 + seed % 5)


def _noise(loop: Loop, seed: int) -> None:
    loop.update = lambda prediction, _, latents: latents + (0.31 + 0.01 * (seed % 5)) * prediction


def _size(loop: Loop, _: int) -> None:
    loop.latents = draw_latents(size=12)


AT_ONCE: dict[str, Change] = {
    "latents": _latents,
    "one element": _one_element,
    "prompt": _prompt,
    "length": _length,
    "steps": _steps,
    "timesteps": _timesteps,
    "noise": _noise,
    "size": _size,
}
"""What differs from the first step on."""


def _cancels(loop: Loop) -> None:
    raise Cancelled("was cancelled")


def _begins_again(loop: Loop) -> None:
    _like(loop).run()


def _another_request(loop: Loop) -> None:
    Loop(loop.call, loop.timesteps, draw_latents(11), draw_prompt(11)).run()
    raise Cancelled("was answered without an error")


def _resets(loop: Loop) -> None:
    pab_compile.reset()


def _sleeps(loop: Loop) -> None:
    time.sleep(2.5)


def _calls_once_more(loop: Loop) -> None:
    next(_like(loop).steps())


def _states_steps(loop: Loop) -> None:
    loop.call = _stating(loop.call, len(loop.timesteps), "steps")


def _states_a_generation(loop: Loop) -> None:
    loop.call = _stating(loop.call, len(loop.timesteps), "a generation")


AT_A_STEP: dict[str, Callable[[Loop], None]] = {
    "cancels": _cancels,
    "another request": _another_request,
    "begins again": _begins_again,
    "resets": _resets,
    "sleeps": _sleeps,
    "calls once more": _calls_once_more,
    "states steps": _states_steps,
    "states a generation": _states_a_generation,
}
"""What a rank does between two steps."""


def _like(loop: Loop) -> Loop:
    """The same generation from its start."""
    return Loop(loop.call, loop.timesteps, guidance=loop.guidance)


def _stating(call: ModelCall, num_steps: int, what: str) -> ModelCall:
    """Calls that state where they belong."""

    def stated(x: torch.Tensor, t: torch.Tensor, prompt: torch.Tensor, moment: Moment) -> Any:
        if what == "steps":
            with pab_compile.step(moment.step, moment.num_steps, lane=moment.lane):
                return call(x, t, prompt, moment)
        with pab_compile.generation(timesteps=ddim_timesteps(num_steps)):
            return call(x, t, prompt, moment)

    return stated
