"""Small DiTs whose forwards Dynamo breaks into several graphs, and a hook oracle for them.

``BrokenDiT`` breaks where it is told to; told nothing it is one graph. ``PackedDiT`` is built as
the original Open-Sora code is: ``.item()`` on height and width, prompts packed with
``masked_select`` and ``.tolist()``, and cross-attention over all videos as one sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, CHANNELS, TEXT_WIDTH = 16, 2, 4, 12
SHAPE = (2, CHANNELS, 3, 2, 4)
RANGES = {"spatial": 2, "temporal": 4, "cross": 3}


def sinusoids(values: torch.Tensor) -> torch.Tensor:
    """Numbers ``[batch]`` as features ``[batch, 16]``."""
    angles = values[:, None].float() * torch.exp(-torch.arange(8) * 0.6)
    return torch.cat([angles.sin(), angles.cos()], 1)


class SelfAttention(nn.Module):
    """Attention among the tokens of ``[batch, tokens, channels]``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.reshape(rows, tokens, WIDTH))


class CrossAttention(nn.Module):
    """Video tokens attend to a prompt, with an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, x: torch.Tensor, text: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = len(text)
        q = self.query(x).view(rows, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
        keys = self.key_value(text).view(rows, -1, 2, HEADS, WIDTH // HEADS)
        k, v = keys.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
        return self.out(mixed.reshape(x.shape))


class Block(nn.Module):
    """Spatial or temporal attention with adaLN and a gate, cross-attention, an MLP."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        setattr(self, kind, SelfAttention())
        self.cross = CrossAttention()
        self.modulation = nn.Linear(WIDTH, 3 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        text: torch.Tensor,
        frames: int,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch = len(x)
        shift, scale, gate = self.modulation(F.silu(emb))[:, None].chunk(3, -1)
        y = (self.norm(x) * (1 + scale) + shift).view(batch, frames, -1, WIDTH)
        if self.kind == "temporal":
            y = self.temporal(y.transpose(1, 2).reshape(-1, frames, WIDTH))
            y = y.view(batch, -1, frames, WIDTH).transpose(1, 2).reshape(x.shape)
        else:
            y = self.spatial(y.reshape(batch * frames, -1, WIDTH)).view(x.shape)
        x = x + gate * y
        x = x + self.cross(x, text, mask)
        return x + self.mlp(self.norm(x))


class BrokenDiT(nn.Module):
    """A video DiT that breaks at ``places``.

    Args:
        places: some of ``time`` (after the timestep embedding), ``embedding`` (before the blocks),
            ``blocks`` (between two blocks), ``item`` (there, by reading a value), ``tail`` (before
            the output projection).
    """

    def __init__(self, places: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.places = places
        self.time = nn.Linear(16, WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.embed = nn.Linear(CHANNELS, WIDTH)
        self.first, self.second = Block("spatial"), Block("temporal")
        self.last = nn.Linear(WIDTH, CHANNELS)

    def forward(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep))
        if "time" in self.places:
            torch._dynamo.graph_break()
        text = self.text(prompt)
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        if "embedding" in self.places:
            torch._dynamo.graph_break()
        x = self.first(x, emb, text, frames, mask)
        if "blocks" in self.places:
            torch._dynamo.graph_break()
        if "item" in self.places and x.abs().max().item() > 1e6:
            raise ValueError("diverged")
        x = self.second(x, emb, text, frames, mask)
        if "tail" in self.places:
            torch._dynamo.graph_break()
        return self.last(x).view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)


class PackedDiT(nn.Module):
    """Prompts of all videos packed into one sequence; six graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv3d(CHANNELS, WIDTH, (1, 2, 2), stride=(1, 2, 2))
        self.time, self.rate = nn.Linear(16, WIDTH), nn.Linear(16, WIDTH)
        self.text = nn.Linear(TEXT_WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block(kind) for kind in ("spatial", "temporal") * 2)
        self.last = nn.Linear(WIDTH, 4 * CHANNELS)

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        y: torch.Tensor,
        mask: torch.Tensor,
        fps: torch.Tensor,
        height: torch.Tensor,
        width: torch.Tensor,
    ) -> torch.Tensor:
        x = x.to(self.last.weight.dtype)
        timestep = timestep.to(self.last.weight.dtype)
        batch, _, frames, rows, columns = x.shape
        scale = (height[0].item() * width[0].item()) ** 0.5 / 512
        grid = torch.arange(rows // 2)[:, None] + 7.0 * torch.arange(columns // 2)[None]
        positions = sinusoids(grid.reshape(-1) / scale)[:, :WIDTH]
        emb = self.time(sinusoids(timestep)) + self.rate(sinusoids(fps))
        text, lengths = self.pack(self.text(y), mask)
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = (x.view(batch, frames, -1, WIDTH) + positions).reshape(batch, -1, WIDTH)
        own = torch.block_diag(*[torch.ones(x.shape[1], n) for n in lengths]).bool()
        for block in self.blocks:
            x = block(x, emb, text, frames, own)
        x = self.last(x).view(batch, frames, rows // 2, columns // 2, CHANNELS, 2, 2)
        return x.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, CHANNELS, frames, rows, columns)

    def pack(self, y: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        y = y.masked_select(mask.unsqueeze(-1) != 0).view(1, -1, WIDTH)
        return y, mask.sum(1).tolist()


@dataclass
class HookOracle:
    """A copy of a model whose attention modules repeat their last output by the paper's rule.

    A lane that was not called at the step whose output the rule names computes.

    Args:
        model: the model.
        ranges: kind -> compute every so many steps; the window is the whole generation.
    """

    model: nn.Module
    ranges: dict[str, int]
    computed: dict[str, set[int]] = field(default_factory=dict)
    now: tuple[int, str] = (0, "")

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model)
        if isinstance(self.model, BrokenDiT):
            self.model.places = ()
        self._outputs: dict[tuple[str, str], tuple[int, torch.Tensor]] = {}
        for name, module in self.model.named_modules():
            kind = name.rpartition(".")[2]
            if kind in ("spatial", "temporal", "cross"):
                module.forward = self._hooked(name, kind, module.forward)

    def _hooked(self, name: str, kind: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any) -> torch.Tensor:
            step, lane = self.now
            source = step - step % self.ranges.get(kind, 1)
            stored_at, output = self._outputs.get((name, lane), (-1, None))
            if output is not None and step != source == stored_at:
                return output
            self.computed.setdefault(kind, set()).add(step)
            output = compute(*args)
            if step == source:
                self._outputs[name, lane] = step, output
            return output

        return forward

    def begin(self) -> None:
        """A new generation."""
        self._outputs.clear()
        self.computed.clear()


Inputs = dict[str, torch.Tensor]
Denoiser = Callable[[Inputs, tuple[int, str]], torch.Tensor]


def denoise(
    call: Denoiser,
    latents: torch.Tensor,
    lanes: dict[str, Inputs],
    timesteps: torch.Tensor,
    *,
    by_value: bool = False,
    name: str = "latents",
) -> Iterator[torch.Tensor]:
    """A small sampler: every step calls the model once per lane and mixes the results.

    Args:
        call: the model, given its inputs and where it is.
        latents: where to begin.
        lanes: name of the call -> its inputs besides latents and timestep.
        timesteps: the scheduler's table.
        by_value: hand out copies of the timesteps instead of views into the table.
        name: the model's name for the latents.
    """
    for step, timestep in enumerate(timesteps):
        time = (
            torch.full((len(latents),), float(timestep))
            if by_value
            else timestep.expand(len(latents))
        )
        given = {name: latents, "timestep": time}
        found = [call({**given, **inputs}, (step, lane)) for lane, inputs in lanes.items()]
        latents = latents - 0.2 * torch.stack(found).mean(0)
        yield latents


def draw(model: type[nn.Module], *args: Any) -> nn.Module:
    """A model with random weights, none of them zero."""
    torch.manual_seed(0)
    made = model(*args).eval().requires_grad_(False)
    for parameter in made.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return made


def packed_inputs(seed: int, lengths: tuple[int, int] = (5, 3)) -> Inputs:
    """Inputs of ``PackedDiT`` besides latents and timestep, for a batch of two."""
    random = torch.Generator().manual_seed(seed)
    mask = (torch.arange(7)[None] < torch.tensor(lengths)[:, None]).long()
    return {
        "y": torch.randn(2, 7, TEXT_WIDTH, generator=random),
        "mask": mask,
        "fps": torch.full((2,), 24.0),
        "height": torch.full((2,), 64.0),
        "width": torch.full((2,), 128.0),
    }


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Reproducible latents or prompts."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def compiled(
    model: nn.Module, ranges: dict[str, int], *, dynamic: bool | None = None, **options: Any
) -> nn.Module:
    """The model compiled by the backend; the window is the whole generation."""
    given = {"ranges": ranges, "window": (0.0, 1.0), "inner": "eager", **options}
    return torch.compile(model, backend="pab", options=given, dynamic=dynamic)  # type: ignore[return-value]


def caller(model: nn.Module) -> Any:
    return lambda inputs, where: model(**inputs)


def asker(oracle: HookOracle) -> Any:
    def call(inputs: Inputs, where: tuple[int, str]) -> torch.Tensor:
        oracle.now = where
        return oracle.model(**inputs)

    return call


def table(num_steps: int = 6) -> torch.Tensor:
    return torch.linspace(990, 10, num_steps)


def prompts(*seeds: int) -> dict[str, Inputs]:
    return {f"lane{seed}": {"prompt": noise(2, 7, 12, seed=seed)} for seed in seeds}


def check_against_oracle(
    model: nn.Module,
    oracle: HookOracle,
    shape: tuple[int, ...],
    lanes: dict[str, Inputs],
    timesteps: torch.Tensor,
    **how: Any,
) -> None:
    oracle.begin()
    latents = noise(*shape, seed=len(timesteps))
    ours = list(denoise(caller(model), latents, lanes, timesteps, **how))
    theirs = list(denoise(asker(oracle), latents, lanes, timesteps, **how))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def check_changing(twin: nn.Module, oracle: HookOracle, lanes: list[dict[str, Inputs]]) -> None:
    """A generation whose lanes and batch differ from step to step, against the oracle."""
    oracle.begin()
    results: list[list[torch.Tensor]] = []
    timesteps = table(len(lanes))
    calls = [(step, lane, inputs) for step, now in enumerate(lanes) for lane, inputs in now.items()]
    for call in (caller(twin), asker(oracle)):
        latents, before, given = noise(*SHAPE), -1, {}
        results.append([])
        for step, lane, inputs in calls:
            batch = len(inputs["prompt"])
            if step != before:
                given = {"latents": latents[:batch], "timestep": timesteps[step].expand(batch)}
            found = call({**given, **inputs}, (step, lane))
            results[-1].append(found)
            latents, before = latents.clone(), step
            latents[:batch] -= 0.2 * found
    torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
