"""A generation on ranks whose links are slow: every collective takes a fixed time per byte.

Other work on the machine would change the wall time by more than what is tested. So the time of a
rank is that of its processor, and that for which it waited for the slow links.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from diffusers import LatteTransformer3DModel
from torch import fx

import pab_compile
from helpers.latte import (
    CAPTION_CHANNELS,
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_prompt,
)
from helpers.world import Counter, Mesh
from pab_compile import Link

NUM_STEPS = 8
LINK = Link(0.02, 4e6)
PLANS: dict[str, dict[str, Any]] = {
    "without reuse": {"ranges": {}},
    "with reuse": {"ranges": {"spatial": 2, "temporal": 4, "cross": 6}, "window": (0.1, 0.9)},
}


class Slowed(Counter):
    """An inner compiler that runs pieces as they are, and waits for what they exchange.

    Attributes:
        waited: seconds for which it waited.
    """

    waited = 0.0

    def __call__(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Take a piece."""
        run = super().__call__(graph_module, inputs)

        def slowly(*args: torch.Tensor) -> Any:
            before = (self.calls + self.gathers, self.sent + self.gathered)
            outputs = run(*args)
            num = self.calls + self.gathers - before[0]
            sent = self.sent + self.gathered - before[1]
            start = time.monotonic()
            time.sleep(num * LINK.seconds + sent / LINK.bytes_per_second)
            self.waited += time.monotonic() - start
            return outputs

        return slowly


def wide_latte() -> LatteTransformer3DModel:
    """A Latte that computes for long enough to be timed."""
    torch.manual_seed(0)
    return LatteTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=384,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=CAPTION_CHANNELS,
        video_length=8,
    ).eval()


def inputs() -> dict[str, torch.Tensor]:
    """The arguments of one call."""
    return {
        "hidden_states": torch.zeros(2, 4, 8, 16, 16),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": draw_prompt(batch=2),
    }


def seconds(group: dist.ProcessGroup, plan: str) -> tuple[float, float]:
    """Seconds of a generation: without reuse on one rank, and under a plan on all of them."""
    inner = Slowed(group.rank())
    alone = compiled_pab(wide_latte(), inner="eager", **PLANS["without reuse"])
    shared = compiled_pab(wide_latte(), inner=inner, mesh=Mesh(group), shard="t", **PLANS[plan])
    return _timed(group, alone, inner), _timed(group, shared, inner)


def _timed(group: dist.ProcessGroup, compiled: Any, inner: Slowed) -> float:
    """The fastest of three generations; the first one compiles."""
    found = []
    for _ in range(4):
        latents, prompt = inputs()["hidden_states"][:1], inputs()["encoder_hidden_states"][:1]
        loop = Loop(
            calls_of(compiled), ddim_timesteps(NUM_STEPS), latents, prompt, guidance="batched"
        )
        dist.barrier(group)
        start = time.process_time() + inner.waited
        loop.run()
        found.append(time.process_time() + inner.waited - start)
        pab_compile.reset()
    return min(found[1:])
