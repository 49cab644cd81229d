"""Weights that the packages themselves quantise: GGUF files, bitsandbytes, optimum-quanto."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes
import diffusers
import gguf
import pytest
import torch
from optimum import quanto

import pab_compile
from dits.build import Denoising, build, run
from dits.catalogue import CATALOGUE
from dits.oracle import RANGES, Oracle
from dits.spec import WHAT_MODELS_WARN_OF
from helpers.latte import assert_different, assert_same

pytestmark = WHAT_MODELS_WARN_OF
# Rows of 32 and 64 numbers, as blocks of GGUF files have.
WAN = replace(
    CATALOGUE["wan"], config={**CATALOGUE["wan"].config, "attention_head_dim": 16, "ffn_dim": 64}
)
NUM_STEPS = 6


def from_gguf(quantised: str) -> Callable[[Any, Path], Any]:
    """Writes a GGUF file whose blocks are quantised, and loads it as diffusers' users do."""

    def load(model: Any, folder: Path) -> Any:
        kind = gguf.GGMLQuantizationType[quantised]
        writer = gguf.GGUFWriter(folder / "model.gguf", "wan")
        for name, tensor in model.state_dict().items():
            is_packed = name.startswith("blocks.") and name.endswith(".weight") and tensor.ndim == 2
            if is_packed:
                writer.add_tensor(name, gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        model.save_config(folder)
        return type(model).from_single_file(
            str(folder / "model.gguf"),
            config=str(folder),
            torch_dtype=torch.float32,
            quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        )

    return load


def from_bitsandbytes(model: Any, _: Path) -> Any:
    """NF4. The scales of the blocks are attributes of the weight, so Dynamo passes them alone.

    diffusers does not load such weights without an accelerator, so the layers are replaced here.
    """
    for path, layer in list(model.blocks.named_modules()):
        if type(layer) is not torch.nn.Linear:
            continue
        packed = bitsandbytes.nn.LinearNF4(
            layer.in_features, layer.out_features, compute_dtype=torch.float32
        )
        packed.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=packed
        )
        packed.bias = layer.bias
        model.blocks.set_submodule(path, packed)
    return model.to("cpu")  # quantises


def from_quanto(model: Any, folder: Path) -> Any:
    """Integers of 8 bits; the package wraps them in a tensor of its own."""
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model


LOADERS: dict[str, Callable[[Any, Path], Any]] = {
    "GGUF Q8_0": from_gguf("Q8_0"),
    "GGUF Q4_0": from_gguf("Q4_0"),
    "bitsandbytes NF4": from_bitsandbytes,
    "optimum-quanto int8": from_quanto,
}


@pytest.mark.sample("GGUF Q4_0")
@pytest.mark.parametrize("name", LOADERS)
def test_a_model_loaded_by_its_package_is_eager_or_reuses_as_its_hooks(
    name: str, tmp_path: Path, runs_all: bool
) -> None:
    loop = Denoising(WAN, NUM_STEPS)
    plain = loop.predictions(build(WAN))
    model = LOADERS[name](build(WAN), tmp_path).eval().requires_grad_(False)
    eager = loop.predictions(model)
    assert_different(eager, plain)  # something was quantised
    assert type(run(model, **loop.at(0))[0]) is torch.Tensor
    if runs_all:
        always = torch.compile(model, backend="pab", options={"ranges": {}, "inner": "eager"})
        assert_same(loop.predictions(always), eager)
        assert type(run(always, **loop.at(0))[0]) is torch.Tensor
    options = {"ranges": RANGES, "window": (0.0, 1.0), "inner": "eager"}
    reusing = torch.compile(model, backend="pab", options=options)
    actual = loop.predictions(reusing)
    stats = pab_compile.stats(reusing)
    assert (stats.notes, stats.lanes) == ((), 1)
    oracle = Oracle(model, WAN)
    expected = torch.stack([first for first, *_ in oracle.run(loop)])
    oracle.remove()
    assert_different(eager, expected)
    assert_same(actual, expected)
    assert {kind: count for kind, count in stats.reused.items() if count} == dict(oracle.reused)
