"""Small models for the tests of the passes, captured as the backend captures real ones.

A model is a plain function of named tensors; parameters are its weights. It is traced by
``torch.fx`` instead of Dynamo, so that names and order do not depend on the torch version.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn.functional import gelu, linear, scaled_dot_product_attention, silu

import helpers.latte as latte
from pab_compile.dynamo import trace_once
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.capture import capture
from pab_compile.passes.graph.inputs import Inputs
from pab_compile.passes.graph.printer import format_node
from pab_compile.passes.pipeline import analysis
from pab_compile.passes.program import Program, run_passes

BATCH, CHANNELS, FRAMES, HEIGHT, WIDTH, TEXT = 2, 4, 3, 2, 5, 7
SPACE, TOKENS = HEIGHT * WIDTH, FRAMES * HEIGHT * WIDTH


@dataclass(frozen=True)
class Captured:
    """A captured graph with the inputs that it was captured with, and the function it came from."""

    graph_module: fx.GraphModule
    args: tuple[torch.Tensor, ...]
    function: Callable[..., Any]

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def node(self, name: str) -> fx.Node:
        return next(node for node in self.graph.nodes if node.name == name)

    def eager(self) -> tuple[torch.Tensor, ...]:
        """What the function itself yields."""
        with torch.no_grad():
            result = self.function(*self.args)
        return result if isinstance(result, tuple) else (result,)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    """Reproducible values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    """A parameter of the model."""
    scaled = values(*shape, seed=seed) * shape[-1] ** -0.5
    return torch.nn.Parameter(scaled, requires_grad=False)


def captured(function: Callable[..., Any], **tensors: torch.Tensor) -> Captured:
    """Capture a function; inputs that are not given are taken from ``USUAL``, or are weights.

    A parameter named ``w_<name>`` is a weight of ``CHANNELS x CHANNELS`` unless it is given.
    """
    traced = fx.symbolic_trace(function)
    end = ir.output_node(traced.graph)
    if not isinstance(end.args[0], tuple):
        end.args = ((end.args[0],),)
        traced.recompile()
    names = [node.name for node in ir.placeholders(traced.graph)]
    args = tuple(tensors[name] if name in tensors else usual(name) for name in names)
    graph_module = capture(traced, args)
    for node in ir.placeholders(graph_module.graph):
        node._rename(ir.source(node))
    for node in graph_module.graph.nodes:
        if ir.is_call(node, "scaled_dot_product_attention"):
            node._rename("attend")  # a name that fits on a line
    return Captured(graph_module, args, function)


def through_dynamo(function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.GraphModule:
    """The capture of the one graph that Dynamo makes of a call."""
    found: list[fx.GraphModule] = []

    def look(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        found.append(capture(graph_module, inputs))
        return graph_module.forward(*inputs)

    with torch.no_grad():
        trace_once(function, args, kwargs, look)
    (graph_module,) = found
    return graph_module


def ops(graph_module: fx.GraphModule) -> list[str]:
    """Names of the ops, in order."""
    return [ir.op_name(node) for node in ir.calls(graph_module.graph)]


def captured_module(module: torch.nn.Module, **inputs: Any) -> Captured:
    """Capture a module through Dynamo, as the backend does."""
    found: list[Captured] = []

    def look(graph_module: fx.GraphModule, args: Sequence[Any]) -> Any:
        tensors = tuple(Inputs.of(graph_module, args).tensors(args))
        found.append(Captured(capture(graph_module, args), tensors, graph_module.forward))
        return graph_module.forward(*args)

    with torch.no_grad():
        trace_once(module.forward, (), inputs, look)
    (model,) = found
    return model


def analysed(
    model: Captured, cut: str = "attention", axes: Mapping[str, str] | None = None
) -> Program:
    """Run the passes that only look."""
    return run_passes(Program(model.graph_module), analysis(axes or {}, cut))


def lines(nodes: Any) -> str:
    """Nodes in print, one per line."""
    return "\n".join(format_node(node) for node in nodes)


def usual(name: str) -> torch.Tensor:
    seed = zlib.crc32(name.encode())
    if name in USUAL:
        return values(*USUAL[name], seed=seed)
    assert name.startswith("w_"), f"{name} is neither a usual input nor a weight"
    return weight(*WEIGHTS.get(name, (CHANNELS, CHANNELS)), seed=seed)


USUAL = {
    "latents": (BATCH, CHANNELS, FRAMES, HEIGHT, WIDTH),
    "timestep": (BATCH,),
    "prompt": (BATCH, TEXT, CHANNELS),
    "image": (BATCH, 6, CHANNELS),
}
WEIGHTS = {
    "w_wide_in": (16, 4),
    "w_narrow": (4, 16),
    "w_wide": (16, 4),
    "w_both": (4, 8),
    "w_last": (4, 16),
}


def tokens_of(latents: torch.Tensor, w_in: torch.Tensor) -> torch.Tensor:
    """Latents as embedded tokens ``[b, t*h*w, c]``."""
    return linear(latents.permute(0, 2, 3, 4, 1).reshape(BATCH, TOKENS, CHANNELS), w_in)


def latents_of(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens back in the shape of the latents."""
    return tokens.reshape(BATCH, FRAMES, HEIGHT, WIDTH, CHANNELS).permute(0, 4, 1, 2, 3)


def time_embedding(timestep: torch.Tensor, w_time: torch.Tensor) -> torch.Tensor:
    """Embedded timestep ``[b, 1, c]``."""
    return linear(torch.sin(timestep[:, None].expand(BATCH, CHANNELS)), w_time)[:, None]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One head of attention over ``[batch, tokens, c]``."""
    return scaled_dot_product_attention(q, k, v)


def gated_attention(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_qkv: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """``x + gate * proj(attention(x * scale))``: the attention half of a block with adaLN."""
    x = tokens_of(latents, w_in)
    emb = time_embedding(timestep, w_time)
    y = linear(x * emb, w_qkv)
    return latents_of(x + silu(emb) * linear(attend(y, y, y), w_out))


def mlp_block(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_out: torch.Tensor,
    w_up: torch.Tensor,
    w_down: torch.Tensor,
) -> torch.Tensor:
    """Attention with a residual, then ``x + gate * mlp(x)``."""
    x = tokens_of(latents, w_in)
    emb = time_embedding(timestep, w_time)
    x = x + linear(attend(x, x, x), w_out)
    return latents_of(x + emb * linear(gelu(linear(x * emb, w_up)), w_down))


def parallel_block(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_qkv: torch.Tensor,
    w_up: torch.Tensor,
    w_both: torch.Tensor,
) -> torch.Tensor:
    """``x + gate * proj(concat(attention(y), mlp(y)))``: attention beside an MLP."""
    x = tokens_of(latents, w_in)
    emb = time_embedding(timestep, w_time)
    y = x * emb
    qkv = linear(y, w_qkv)
    both = torch.cat([attend(qkv, qkv, qkv), gelu(linear(y, w_up))], -1)
    return latents_of(x + emb * linear(both, w_both))


def cross_attention(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_q: torch.Tensor,
    w_k: torch.Tensor,
    w_v: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Video tokens attend to a prompt."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    attention = attend(linear(x, w_q), linear(prompt, w_k), linear(prompt, w_v))
    return latents_of(x + linear(attention, w_out))


def two_prompts(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    image: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Two cross-attentions are added and projected once (as in Wan's image-to-video models)."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    return latents_of(x + linear(attend(x, prompt, prompt) + attend(x, image, image), w_out))


def joint_attention(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    prompt: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_text: torch.Tensor,
    w_out: torch.Tensor,
    w_text_out: torch.Tensor,
) -> torch.Tensor:
    """Video and text attend together; both streams go on."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    text = linear(prompt, w_text)
    both = torch.cat([text, x], 1)
    text_part, video_part = attend(both, both, both).split([TEXT, TOKENS], 1)
    text = text + linear(text_part, w_text_out)
    x = x + linear(video_part, w_out)
    return latents_of(x + text.mean(1, keepdim=True))


def batch_loop(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Attention runs over the rows of the batch one by one (as in Mochi)."""
    x = tokens_of(latents, w_in) + time_embedding(timestep, w_time)
    rows = [attend(x[i : i + 1], x[i : i + 1], x[i : i + 1]) for i in range(BATCH)]
    return latents_of(x + linear(torch.cat(rows), w_out))


def no_residual(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_in: torch.Tensor,
    w_time: torch.Tensor,
    w_out: torch.Tensor,
) -> torch.Tensor:
    """Attention whose output replaces the stream; the timestep comes in afterwards."""
    x = tokens_of(latents, w_in)
    return latents_of(linear(attend(x, x, x), w_out) * time_embedding(timestep, w_time))


def widening(
    latents: torch.Tensor,
    timestep: torch.Tensor,
    w_wide_in: torch.Tensor,
    w_time: torch.Tensor,
    w_narrow: torch.Tensor,
    w_wide: torch.Tensor,
    w_last: torch.Tensor,
) -> torch.Tensor:
    """Attention narrower than the stream: its own output is the smallest tensor of the region."""
    x = tokens_of(latents, w_wide_in)
    y = linear(x, w_narrow) + time_embedding(timestep, w_time)
    return latents_of(linear(x + linear(attend(y, y, y), w_wide), w_last))


class Block(torch.nn.Module):
    """Spatial attention, cross-attention and an MLP, modulated by a table of the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = torch.nn.Linear(8, 48)
        self.qkv = torch.nn.Linear(8, 24)
        self.out = torch.nn.Linear(8, 8)
        self.query = torch.nn.Linear(8, 8)
        self.key_value = torch.nn.Linear(8, 16)
        self.cross_out = torch.nn.Linear(8, 8)
        self.up = torch.nn.Linear(8, 16)
        self.down = torch.nn.Linear(16, 8)

    def forward(self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        table = self.modulation(silu(emb)).chunk(6, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = table
        q, k, v = self.qkv(x * (1 + scale) + shift).chunk(3, -1)
        x = x + gate * self.out(attend(q, k, v))
        x = x + self.cross_out(attend(self.query(x), *self.key_value(text).chunk(2, -1)))
        return x + mlp_gate * self.down(gelu(self.up(x * (1 + mlp_scale) + mlp_shift)))


class SmallDiT(torch.nn.Module):
    """A video transformer of our own: every frame is a row of the batch."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(CHANNELS, 8)
        self.time = torch.nn.Linear(8, 8)
        self.text = torch.nn.Linear(CHANNELS, 8)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(depth))
        self.last = torch.nn.Linear(8, CHANNELS)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(-1, SPACE, CHANNELS))
        emb = self.time(torch.sin(timestep[:, None] * torch.arange(8)))
        emb = emb.repeat_interleave(FRAMES, 0)[:, None]
        text = self.text(prompt).repeat_interleave(FRAMES, 0)
        for block in self.blocks:
            x = block(x, emb, text)
        return latents_of(self.last(x))


@functools.cache
def small_dit(depth: int) -> Captured:
    """A captured ``SmallDiT``. Tests share it: passes leave the graph that they are given."""
    torch.manual_seed(0)
    inputs = {name: usual(name) for name in ("latents", "timestep", "prompt")}
    return captured_module(SmallDiT(depth).requires_grad_(False), **inputs)


@functools.cache
def small_latte(depth: int = 1, batch: int = 1) -> Captured:
    """A captured Latte of diffusers, shared like ``small_dit``."""
    return captured_module(
        latte.tiny_latte(depth),
        hidden_states=latte.draw_latents(batch=batch),
        timestep=torch.tensor([500] * batch),
        encoder_hidden_states=latte.draw_prompt(batch=batch),
        return_dict=False,
    )
