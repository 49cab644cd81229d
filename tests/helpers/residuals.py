"""Ways to write ``x + gate * y``, and a model that adds all its residuals in one of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import gelu, linear

from helpers.captured import (
    Captured,
    attend,
    captured,
    latents_of,
    time_embedding,
    tokens_of,
    usual,
)

Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Stream, added value, gate (of every step), mask (of the prompt) -> stream."""


def _in_parts(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:, :2] + y[:, :2], x[:, 2:] + y[:, 2:]], 1)


FORMS: dict[str, Form] = {
    "add": lambda x, y, g, m: x + y * g,
    "float32 around the sum": lambda x, y, g, m: (x.float() + y.float() * g).type_as(x),
    "float32 after the gate": lambda x, y, g, m: (x.float() + (y * g).float()).to(x.dtype),
    "float32 for the gate": lambda x, y, g, m: x + (y.float() * g.float()).type_as(x),
    "views": lambda x, y, g, m: (x.unflatten(1, (3, 10)) + (y * g).unflatten(1, (3, 10))).flatten(
        1, 2
    ),
    "contiguous": lambda x, y, g, m: (x.contiguous() + y * g).contiguous(),
    "sub": lambda x, y, g, m: x - y * g,
    "rsub": lambda x, y, g, m: torch.rsub(y * g, x),
    "alpha": lambda x, y, g, m: torch.add(x, y * g, alpha=0.5),
    "addcmul": lambda x, y, g, m: torch.addcmul(x, y, g),
    "addcmul, gate first": lambda x, y, g, m: torch.addcmul(x, g, y, value=0.5),
    "addcmul_": lambda x, y, g, m: x.clone().addcmul_(y, g),
    "addcdiv": lambda x, y, g, m: torch.addcdiv(x, y, 1 + g * g),
    "mul_ and add_": lambda x, y, g, m: y.mul_(g).add_(x),
    "baddbmm": lambda x, y, g, m: torch.baddbmm(x, y, torch.eye(4, dtype=y.dtype).expand(2, 4, 4)),
    "lerp by a constant": lambda x, y, g, m: torch.lerp(x, y, 0.3),
    "a scaled stream": lambda x, y, g, m: 0.9 * x + y * g,
    "a scaled sum": lambda x, y, g, m: (x + y * g) / 2**0.5,
    "parts": lambda x, y, g, m: _in_parts(x, y * g),
    "a stack": lambda x, y, g, m: torch.stack([x, (y * g).type_as(x)]).sum(0),
    "where between gates": lambda x, y, g, m: x + torch.where(m, y * g, y * (g + 1)),
    "where, sum first": lambda x, y, g, m: torch.where(m, x + y * g, x),
    "where, stream first": lambda x, y, g, m: torch.where(m, x, x + y * g),
    "where in the place of a sum": lambda x, y, g, m: torch.where(m, y, x),
}

OF_THE_STEP: dict[str, Form] = {
    "lerp": lambda x, y, g, m: torch.lerp(x, y, g.to(x.dtype)),
    "where between sums": lambda x, y, g, m: torch.where(m, x + y * g, x + y * (g + 1)),
    "where by the step": lambda x, y, g, m: torch.where(g > 0, x + y * g, x),
}
"""Residuals whose stream, or what a site makes of its cut, is scaled or chosen by the step."""

NO_RESIDUALS: dict[str, Form] = {
    "a cast to whole numbers": lambda x, y, g, m: x.to(torch.int32) + y * g,
    "the stream is a factor": lambda x, y, g, m: torch.addcmul(y, x, g),
    "lerp by a weight of the latents": lambda x, y, g, m: torch.lerp(x, y, x.to(y.dtype)),
    "where by a mask of the latents": lambda x, y, g, m: torch.where(x > 0, x, y),
    "the negative stream": lambda x, y, g, m: y * g - x,
}


def residual_model(form: Form, low: bool = False, depth: int = 1) -> Captured:
    """Attention and MLP in turns, each added by a form.

    Args:
        form: how to add.
        low: whether weights and inputs are bfloat16. Norm and gate are float32 then.
        depth: how many of each.
    """

    def model(latents, timestep, prompt, w_in, w_time, w_q, w_out, w_up, w_down):  # type: ignore[no-untyped-def]
        x = tokens_of(latents, w_in)
        gate = time_embedding(timestep, w_time)
        mask = prompt[:, :1, :1] > 0
        if low:
            gate = gate.float()
        for _ in range(depth):
            q = linear((x.float() * gate).to(latents.dtype), w_q)
            x = form(x, linear(attend(q, q, q), w_out), gate, mask)
            h = (x.float() * gate).to(latents.dtype)
            x = form(x, linear(gelu(linear(h, w_up)), w_down), gate, mask)
        return latents_of(x)

    names = ["latents", "timestep", "prompt", "w_in", "w_time", "w_q", "w_out", "w_up", "w_down"]
    return captured(model, **{name: _low(name) for name in names} if low else {})


def _low(name: str) -> torch.Tensor:
    given = usual(name)
    lower = given.to(torch.bfloat16)
    return torch.nn.Parameter(lower, False) if isinstance(given, torch.nn.Parameter) else lower
