"""A self-test: a tiny transformer is compiled, generates, reuses, and is compared with itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from pab_compile.runtime.last_runs import stats
from pab_compile.runtime.scope import generation

_WIDTH, _STEPS = 32, 8


class _Tiny(nn.Module):
    """One block: attention over the pixels, and an MLP, both of the timestep."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.time = nn.Linear(4, _WIDTH), nn.Linear(8, _WIDTH)
        self.qkv, self.back = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.norm, self.out = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, 4)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.into(latents.flatten(2).transpose(1, 2))
        angles = timestep[:, None] * torch.arange(1, 9, device=timestep.device)
        gate = self.time(angles.sin())[:, None]
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + gate * self.back(mixed)
        return self.out(x).transpose(1, 2).reshape(latents.shape)


def self_test(inner: str = "inductor") -> dict[str, str]:
    """Run it.

    Args:
        inner: the compiler of the pieces.

    Returns:
        What is wrong, by the name of the check; empty if nothing is.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = _Tiny().eval().requires_grad_(False).to(device)
    options = {"inner": inner, "ranges": {"full": 2, "spatial": 2}, "window": (0.0, 1.0)}
    compiled = torch.compile(model, backend="pab", options=options)
    latents = torch.randn(1, 4, 8, 8, device=device)
    wrong: dict[str, str] = {}
    table = torch.linspace(1.0, 0.125, _STEPS).to(device)
    with torch.no_grad(), generation(timesteps=table):
        first = model(latents, table[:1])
        for step, timestep in enumerate(table):
            result = compiled(latents, timestep[None])
            error = float((result - first).abs().max() / first.abs().max())
            if step == 0 and error > 1e-3:
                wrong["a step that computes"] = f"it differs from eager mode by {error:.1e}"
    reused = sum(stats(compiled).reused.values())
    if reused != _STEPS // 2:
        notes = "; ".join(stats(compiled).notes)
        wrong["reuse"] = f"{reused} of {_STEPS // 2} reuses happened. {notes}"
    return wrong
