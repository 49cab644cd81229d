"""Attentions inside of torch's own transformer layers are found and reused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import pab_compile
from helpers.collecting import collecting
from helpers.latte import assert_different

NUM_STEPS, TOKENS, TEXT, WIDTH = 6, 10, 5, 16
OPTIONS = {"ranges": {"full": 2, "cross": 3}, "window": (0.0, 1.0), "inner": "eager"}
KINDS = {"encoder": {"full": 2}, "decoder": {"full": 2, "cross": 2}}


class Policy(nn.Module):
    """A DiT of torch's layers, as many models of robots and motions are."""

    def __init__(self, kind: str, is_causal: bool, norm_first: bool) -> None:
        super().__init__()
        shape: dict[str, Any] = {"d_model": WIDTH, "nhead": 2, "dim_feedforward": 32}
        shape |= {"batch_first": True, "norm_first": norm_first, "activation": "gelu"}
        self.kind = kind
        self.first, self.last = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4)
        self.time, self.text = nn.Linear(8, WIDTH), nn.Linear(6, WIDTH)
        self.layers: nn.Module
        if kind == "encoder":
            layer = nn.TransformerEncoderLayer(**shape)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        else:
            self.layers = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shape), 2)
        mask = nn.Transformer.generate_square_subsequent_mask(TOKENS)
        self.register_buffer("mask", mask if is_causal else None)

    def forward(
        self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor
    ) -> torch.Tensor:
        angles = timestep[:, None].float() / 100 * torch.arange(8)
        x = self.first(x) + self.time(angles.sin().to(x.dtype))[:, None]
        if self.kind == "encoder":
            return self.last(self.layers(x + self.text(context).mean(1, True), mask=self.mask))
        return self.last(self.layers(x, self.text(context), tgt_mask=self.mask))


def build(kind: str, is_causal: bool = False, norm_first: bool = True) -> Policy:
    torch.manual_seed(0)
    return Policy(kind, is_causal, norm_first).eval().requires_grad_(False)


def inputs_of(step: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    draw, prompt = torch.Generator().manual_seed(step), torch.Generator().manual_seed(99)
    return {
        "x": torch.randn(2, TOKENS, 4, generator=draw).to(dtype),
        "timestep": torch.linspace(1000, 100, NUM_STEPS)[step].expand(2),
        "context": torch.randn(2, TEXT, 6, generator=prompt).to(dtype),
    }


@contextmanager
def repeated(model: Policy, step: int, kept: dict[Any, torch.Tensor]) -> Iterator[None]:
    """Attentions return what they returned at the last step that computes."""
    originals = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            forward = module.forward
            originals[module] = forward
            is_kept = step % (3 if "multihead_attn" in name else 2) != 0

            def attention(
                *args: Any,
                _name: str = name,
                _forward: Callable[..., Any] = forward,
                _is_kept: bool = is_kept,
                **kwargs: Any,
            ) -> Any:
                if not _is_kept:
                    kept[_name] = _forward(*args, **kwargs)[0]
                return kept[_name], None

            module.forward = attention  # type: ignore[method-assign]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        for module, forward in originals.items():
            module.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("kind", "is_causal", "norm_first"),
    [("encoder", False, False), ("encoder", True, True), ("decoder", True, True)],
)
def test_reuse_is_what_the_model_repeats_itself(
    kind: str, is_causal: bool, norm_first: bool
) -> None:
    model, kept = build(kind, is_causal, norm_first), {}
    compiled: Any = torch.compile(model, backend="pab", fullgraph=True, options=OPTIONS)
    for step in range(NUM_STEPS):
        inputs = inputs_of(step)
        with repeated(model, step, kept):
            expected = model(**inputs)
        with pab_compile.step(step, NUM_STEPS):
            actual = compiled(**inputs)
        torch.testing.assert_close(actual, expected)
        if step == 1:
            assert_different(expected, model(**inputs))
    assert pab_compile.explain(compiled).counts() == KINDS[kind]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_reused_is_the_plain_code_bit_for_bit(dtype: torch.dtype) -> None:
    model = build("encoder", is_causal=True).to(dtype)
    compiled: Any = torch.compile(model, backend="pab", options={"ranges": {}, "inner": "eager"})
    inputs = inputs_of(0, dtype)
    actual = compiled(**inputs)
    with repeated(model, 0, {}):
        assert torch.equal(actual, model(**inputs))


def test_a_mask_that_is_not_causal_is_used() -> None:
    model = build("decoder", is_causal=True)
    model.mask = model.mask.T.contiguous()
    compiled: Any = torch.compile(model, backend="pab", options={"ranges": {}, "inner": "eager"})
    torch.testing.assert_close(compiled(**inputs_of(0)), model(**inputs_of(0)))


def test_other_backends_see_no_difference() -> None:
    backend, graphs = collecting(False)
    with torch.no_grad():
        torch.compile(build("encoder"), backend=backend)(**inputs_of(0))
    (graph_module,) = graphs
    targets = [str(node.target) for node in graph_module.graph.nodes]
    assert any("_transformer_encoder_layer_fwd" in target for target in targets)
