"""What is compiled in a pipeline: what denoises, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import pab_compile
from pab_compile.errors import UnsupportedModelError
from pab_compile.live.find import find_denoisers


class Denoiser(nn.Module):
    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return hidden_states * timestep


class Unusual(nn.Module):
    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return x * level


class TextEncoder(nn.Module):
    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


class Decoder(nn.Module):
    def forward(self, sample: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        return sample + temb


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.vae = Denoiser(), Decoder()

    def forward(self, prompt: torch.Tensor) -> torch.Tensor:
        return prompt


def roles(target: Any, **axes: str) -> list[str]:
    return list(find_denoisers(target, axes))


def test_components_with_a_timestep_are_found_and_helpers_are_not() -> None:
    parts = {
        "text_encoder": TextEncoder(),
        "vae": Decoder(),
        "transformer": Denoiser(),
        "transformer_2": Denoiser(),
        "controlnet": Denoiser(),
        "scheduler": object(),
        "tokenizer": None,
    }
    assert roles(SimpleNamespace(components=parts)) == ["transformer", "transformer_2"]
    assert roles(SimpleNamespace(**parts)) == ["transformer", "transformer_2"]
    found = find_denoisers(SimpleNamespace(components=parts), {})
    assert found["transformer"] is parts["transformer"]


def test_a_module_in_two_roles_is_compiled_once() -> None:
    one = Denoiser()
    assert roles(SimpleNamespace(prior=one, unet=one)) == ["prior"]


def test_a_module_alone_is_the_model() -> None:
    assert roles(Denoiser()) == ["model"]
    assert roles(Unusual(), level="step") == ["model"]
    assert roles(SimpleNamespace(net=Unusual()), level="step") == ["net"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("Wan-AI/Wan2.2", "Nothing denoises in the text 'Wan-AI/Wan2.2'"),
        (None, "Nothing denoises in None"),
        (TextEncoder(), r"reads text \(input_ids\).*usually pipe\.transformer"),
        (Unusual(), r'state it: axes=\{"name": "step"\}'),
        (Holder(), "Its parts inner have one: give such a part"),
        (SimpleNamespace(text_encoder=TextEncoder()), r"found: text_encoder \(TextEncoder\)"),
        (SimpleNamespace(controlnet=Denoiser()), r"found: controlnet \(Denoiser\)"),
        (lambda x, timestep: x, r"torch\.compile\(function, backend='pab'\)"),
        ([Denoiser()], "Call enable for each entry"),
        (Denoiser, "Denoiser is a class"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(target: Any, words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        pab_compile.enable(target)
