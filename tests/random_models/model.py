"""A model of a spec, with outputs of several forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .attention import Attention, norm_of
from .blocks import Block, Given, modulation_site
from .dual import DualBlock
from .forms import NamedOutput, Output
from .latents import FromTokens, ToTokens
from .sites import Site
from .spec import Spec

TEXT, TEXT_CHANNELS, WAVES = 5, 6, 8
Tensor = torch.Tensor


def _waves(x: Tensor) -> Tensor:
    angles = x[..., None].float() / 100 * torch.arange(1, WAVES // 2 + 1)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Model(nn.Module):
    """The model itself. Subclasses have signatures (``signatures.py``)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, width = spec, spec.channels
        is_control = spec.hint == "control"
        self.patches = ToTokens(spec, spec.first and not is_control)
        self.control, self.control_site = ToTokens(spec, False), Site("", "prompt")
        self.last = FromTokens(spec)
        self.time = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.scaling = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.text_in, self.pooled_in = (
            nn.Linear(TEXT_CHANNELS, width),
            nn.Linear(TEXT_CHANNELS, width),
        )
        self.shared = nn.Linear(width, 6 * width)
        self.shared_site = modulation_site(spec)
        self.prompt_site = Site("prompt", "prompt")
        # As a stream of its own or a part of one, the text stays. Else only attentions read it.
        self.refined_site = Site("text", {"video": "prompt"}.get(spec.stream, "always"))
        self.refine = Attention(spec, True)
        self.refine_norm, self.refine_out = nn.LayerNorm(width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(
            DualBlock(spec) if stream == "dual" else Block(spec, stream, mixing, number)
            for number, (stream, mixing) in enumerate(
                zip(spec.streams(), spec.mixings(), strict=True)
            )
        )
        self.join = nn.Linear(2 * width, width)
        self.final_norm, self.final = norm_of(spec.norm_op, width), nn.Linear(width, 2 * width)
        self.registers = nn.Parameter(torch.randn(spec.num_front, width))
        self.history_in, self.history_site = nn.Linear(TEXT_CHANNELS, width), Site("", "prompt")
        self.pooled_site = Site("", "prompt")
        self.image_in, self.image_site = nn.Linear(TEXT_CHANNELS, 3 * width), Site("", "prompt")
        axes = [torch.arange(n) for n in (spec.frames, spec.height, spec.width)]
        self.register_buffer("positions", torch.cartesian_prod(*axes).float())
        self.register_buffer("order", torch.randperm(spec.num_tokens))
        self.levels, self.layers = nn.Embedding(1000, WAVES), nn.Parameter(torch.randn(2))

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and inputs."""
        return getattr(torch, self.spec.dtype)

    def run(
        self,
        latents: Tensor | Sequence[Tensor],
        timestep: Tensor | float,
        text: Tensor | Sequence[Tensor] | None,
        mask: Tensor | None,
        pooled: Tensor | None,
        history: Tensor | None,
        first: Tensor | None,
        scale: Tensor | None,
    ) -> Any:
        """The output for all inputs."""
        spec, control = self.spec, None
        given_latents, factor = latents, self._factor(timestep)
        if spec.mixed:
            many = [
                x.to(self.dtype) for x in ([latents] if isinstance(latents, Tensor) else latents)
            ]
            latents = many[0] if isinstance(latents, Tensor) else many
        if spec.around == "scaled":
            assert isinstance(latents, Tensor)
            latents = latents * factor.view(-1, *[1] * (latents.ndim - 1))
        if first is not None and spec.hint == "control":
            control = self.control_site(lambda: self.control(first).flatten(1, -2))
        elif first is not None:
            assert isinstance(latents, Tensor)
            latents = torch.cat([latents, first], spec.layout.split().index("c"))
        x = self.patches(latents)
        batch = len(x)
        emb = self._embedded(timestep, batch, pooled)
        if scale is not None:
            emb = emb + self.scaling(_waves(scale).to(self.dtype))[:, None]
        tokens, mask = None, None if mask is None else mask.bool()
        if text is not None:
            tokens = self._text(text, mask, emb)
        shared = None
        if spec.modulation == "table":
            shared = self.shared_site(lambda: self.shared(F.silu(emb)))
        image = self._image(pooled) if spec.image and pooled is not None else None
        vector = self._pooled(pooled) if spec.hint == "prompt" and pooled is not None else None
        positions = self.positions.float()
        given = Given(tokens, mask, emb, shared, positions, image, vector, control)
        if not (spec.grid and x.ndim == 5):
            x = x.reshape(batch, -1, spec.channels)
        if spec.modulation == "none":
            x = x + (emb if x.ndim == 3 else self._as_grid(emb))
        if spec.shuffled:
            x = x[:, self.order]
            given = replace(
                given,
                emb=self._shuffled(emb),
                shared=self._shuffled(shared),
                positions=positions[self.order],
                control=self._shuffled(control),
            )
        if num := spec.num_front:
            first = self.registers.expand(batch, -1, -1)
            if history is not None:
                first = self.history_site(lambda: self.history_in(history))
            x = torch.cat([first, x], 1)
            given = given.behind(num)
        x = x.float() if spec.residual == "float32 stream" else x
        x, features = self._through(x, given)
        x = self.final_norm(x.to(self.dtype).reshape(batch, -1, spec.channels)[:, num:])
        if spec.shuffled:
            x = x[:, self.order.argsort()]
        if spec.modulation != "none":
            shift, scale = self.final(F.silu(emb)).chunk(2, -1)
            x = x * (1 + scale) + shift
        out = self.last(x)
        if spec.around != "none":
            assert isinstance(given_latents, Tensor) and isinstance(out, Tensor)
            factor = factor.view(-1, *[1] * (out.ndim - 1))
            is_scaled = spec.around == "scaled"
            out = given_latents * factor + (1 - factor) * out if is_scaled else given_latents + out
        if spec.mixed:
            out = out.float() if isinstance(out, Tensor) else [x.float() for x in out]
        return self._returned((out, features) if spec.returned else out)

    def _shuffled(self, x: Tensor | None) -> Tensor | None:
        return x if x is None or x.shape[1] == 1 else x[:, self.order]

    def _factor(self, timestep: Tensor | float) -> Tensor:
        """Of the latents, a number or one per sample."""
        value = timestep if isinstance(timestep, Tensor) else torch.full((1,), timestep)
        return (1 / (1 + (value.float() / 500) ** 2)).to(self.dtype)

    def _pooled(self, pooled: Tensor) -> Tensor:
        """A vector of the prompt, ``[b, 1, c]``."""
        return self.pooled_site(lambda: self.pooled_in(pooled)[:, None])

    def _image(self, pooled: Tensor) -> Tensor:
        """Three tokens of a picture."""
        return self.image_site(lambda: self.image_in(pooled).unflatten(-1, (3, -1)))

    def _as_grid(self, emb: Tensor) -> Tensor:
        spec = self.spec
        if emb.shape[1] == 1:
            return emb[:, None, None]
        return emb.unflatten(1, (spec.frames, spec.height, spec.width))

    def _embedded(self, timestep: Tensor | float, batch: int, pooled: Tensor | None) -> Tensor:
        """The embedded timestep per token, ``[b, 1 or s, c]``."""
        spec = self.spec
        if isinstance(timestep, float):
            timestep = torch.full((batch,), timestep)
        if timestep.ndim == 0:
            timestep = timestep.expand(batch)
        emb = self.time(self._waves(timestep).to(self.dtype))
        if spec.level == "sample":
            emb = emb[:, None]
        elif spec.level == "frame":
            emb = emb.repeat_interleave(spec.height * spec.width, 1)
        if pooled is not None:
            emb = emb + self.pooled_in(pooled)[:, None]
        return emb

    def _waves(self, timestep: Tensor) -> Tensor:
        times = self.spec.times
        if times == "looked up":
            return self.levels(timestep.long())
        if times == "scaled":
            timestep = timestep / 1000 * 700
        elif times == "inverted":
            timestep = 1000 - timestep
        elif times == "logarithm":
            timestep = 100 * torch.log1p(timestep)
        return _waves(timestep)

    def _text(self, text: Tensor | Sequence[Tensor], mask: Tensor | None, emb: Tensor) -> Tensor:
        if not isinstance(text, Tensor):
            text = torch.stack([F.pad(one, (0, 0, 0, TEXT - len(one))) for one in text])
        refiner, form = self.spec.refiner, self.spec.text
        if form == "squeezed":
            text = text.squeeze(1)
        elif form == "layers":
            text = torch.einsum("bnlc,l->bnc", text, self.layers.softmax(0))

        def made() -> Tensor:
            y = self.text_in(text)
            return self._refined(y, mask, None) if refiner == "prompt" else y

        y = self.prompt_site(made)
        if refiner == "timestep":
            y = self.refined_site(lambda: self._refined(y, mask, emb[:, :1]))
        return y

    def _refined(self, y: Tensor, mask: Tensor | None, emb: Tensor | None) -> Tensor:
        h = self.refine_norm(y)
        h = h if emb is None else h * (1 + emb)
        return y + self.refine_out(self.refine(h, h, mask))

    def _through(self, x: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """All blocks. Returns what the first one computes, too."""
        spec, text, first = self.spec, given.text, x.clone()
        if text is not None and spec.residual == "float32 stream":
            text = text.float()
        joined, features = 0, x
        order = list(zip(self.blocks, spec.streams(), strict=True)) * (2 if spec.twice else 1)
        for number, (block, stream) in enumerate(order):
            if stream == "joint" and not joined:
                assert text is not None
                joined, x = text.shape[1], torch.cat([text, x], 1)
                first = torch.cat([torch.zeros_like(text), first], 1)
            if number == len(order) - 1 and spec.skip == "concatenated":
                x = self.join(torch.cat([x, first], -1).to(self.dtype)).to(x.dtype)
            elif number == len(order) - 1 and spec.skip == "added":
                x = x + first
            if stream == "dual":
                assert text is not None
                x, text = self._block(block, given, x, text)
            else:
                x = self._block(block, given, x)
            if not number and spec.returned:
                features = x[:, joined:].clone()
        return (x[:, joined:] if joined else x), features

    def _block(self, block: nn.Module, given: Given, *streams: Tensor) -> Any:
        if self.spec.checkpointed:
            return checkpoint(lambda *xs: block(*xs, given), *streams, use_reentrant=False)
        return block(*streams, given)

    def _returned(self, made: Any) -> Any:
        form = self.spec.output
        if form == "tensor":
            return made
        if form == "tuple":
            return (made,)
        if form == "list":
            return made if isinstance(made, list) else [made]
        if form == "named tuple":
            return NamedOutput(made)
        return {"sample": made} if form == "dict" else Output(made)
