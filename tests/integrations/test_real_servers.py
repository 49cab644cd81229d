"""The plugins in the installed packages of the servers, where ``PAB_REAL_SERVERS`` is set.

Their own registries find the plugins, and their own classes read the configuration. Nothing here
needs a GPU. ``integrations/servers/README.md`` says what to install.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import empty_modules

if "PAB_REAL_SERVERS" in os.environ:  # before others import them
    empty_modules.install()

import pab_compile
from helpers.captured import SmallDiT
from pab_compile import OptionError

LEVEL = {"level": "balanced", "inner": "eager"}

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the servers' own
    pytest.mark.skipif("PAB_REAL_SERVERS" not in os.environ, reason="PAB_REAL_SERVERS is not set"),
]


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test where a package is not installed."""
    is_there = importlib.util.find_spec(package) is not None
    return pytest.mark.skipif(not is_there, reason=f"{package} is not installed")


def pipe() -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(transformer=SmallDiT(1).requires_grad_(False))


def reused(pipeline: Any, num_steps: int = 12) -> int:
    """Run a generation. How often did sites reuse?"""
    latents, prompt = torch.ones(2, 4, 3, 2, 5), torch.ones(2, 7, 4)
    with torch.no_grad():
        for timestep in torch.linspace(1, 1 / num_steps, num_steps):
            latents = (
                latents - pipeline.transformer(latents, timestep.expand(2), prompt) / num_steps
            )
    return sum(pab_compile.stats(pipeline.transformer).reused.values())


@needs("vllm_omni")
def test_vllm_omni_loads_the_plugin_and_reads_the_configuration() -> None:
    from vllm_omni import plugins
    from vllm_omni.diffusion.cache.base import CacheBackend
    from vllm_omni.diffusion.data import DiffusionCacheConfig, OmniDiffusionConfig

    found = plugins.load_omni_plugins_by_group(plugins.OMNI_DEFAULT_PLUGINS_GROUP)
    found["pab"]()
    from vllm_omni.diffusion.cache import selector

    text = json.dumps(LEVEL)
    config = OmniDiffusionConfig.from_kwargs(cache_backend="pab", cache_config=text)
    assert isinstance(config.cache_config, DiffusionCacheConfig)
    backend = selector.get_cache_backend(config.cache_backend, config.cache_config)
    assert isinstance(backend, CacheBackend)
    pipeline = pipe()
    backend.enable(pipeline)
    backend.refresh(pipeline, 12)
    assert backend.is_enabled()
    assert reused(pipeline) > 0
    assert selector.get_cache_backend("none", None) is None
    foreign = DiffusionCacheConfig.from_dict({"rel_l1_thresh": 0.5})
    with pytest.raises(OptionError, match="rel_l1_thresh"):
        selector.get_cache_backend("pab", foreign)


@needs("sglang")
def test_sglang_applies_the_hook_where_it_switches_a_cache_on(tmp_path: Path) -> None:
    from sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline import DiffusersPipeline
    from sglang.multimodal_gen.runtime.platforms import plugins
    from sglang.multimodal_gen.runtime.server_args import ServerArgs

    plugins.apply_plugin_hooks()
    file = tmp_path / "pab.json"
    file.write_text(json.dumps({"pab": LEVEL}))
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    given = ["--model-path", "m", "--backend", "diffusers", "--cache-dit-config", str(file)]
    read = parser.parse_args(given)
    assert read.cache_dit_config == str(file)
    args = SimpleNamespace(cache_dit_config=read.cache_dit_config, enable_torch_compile=False)
    pipeline, owner = pipe(), object.__new__(DiffusersPipeline)
    assert owner._apply_cache_dit(pipeline, args) is pipeline
    assert reused(pipeline) > 0
    args.cache_dit_config = None
    assert owner._apply_cache_dit(pipeline, args) is pipeline


def tiny_pipeline(folder: Path) -> None:
    """Save a pipeline of diffusers that needs no text encoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    model = DiTTransformer2DModel(in_channels=4, out_channels=8, patch_size=2, **sizes)
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    vae = AutoencoderKL(3, 3, *blocks, block_out_channels=(8, 8), norm_num_groups=4)
    DiTPipeline(model, vae, DDIMScheduler()).save_pretrained(folder)


@needs("sglang")
def test_sglang_serves_a_request_and_reuses(tmp_path: Path) -> None:
    """Its own loader, executor and stage, on a CPU. There is no HTTP, and no worker process."""
    from sglang.multimodal_gen.configs.sample.diffusers_generic import (
        DiffusersGenericSamplingParams,
    )
    from sglang.multimodal_gen.runtime import server_args
    from sglang.multimodal_gen.runtime.pipelines.diffusers_pipeline import DiffusersPipeline
    from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import Req
    from sglang.multimodal_gen.runtime.platforms import plugins

    plugins.apply_plugin_hooks()
    tiny_pipeline(tmp_path / "pipe")
    (tmp_path / "pab.json").write_text(json.dumps({"pab": LEVEL}))
    results = []
    for config in (str(tmp_path / "pab.json"), None):
        args = server_args.ServerArgs.from_kwargs(
            model_path=str(tmp_path / "pipe"), backend="diffusers", cache_dit_config=config
        )
        server_args.set_global_server_args(args)
        pipeline = DiffusersPipeline(str(tmp_path / "pipe"), args)
        wanted = {"num_inference_steps": 12, "height": 16, "width": 16, "seed": 1}
        request = Req(sampling_params=DiffusersGenericSamplingParams(prompt="a cat", **wanted))
        request.extra["diffusers_kwargs"] = {"class_labels": [1]}
        results.append(pipeline.forward(request, args).output)
        if config is not None:
            stats = pab_compile.stats(pipeline.diffusers_pipe.transformer)
            assert stats.steps == 12
            assert sum(stats.reused.values()) > 0
            assert stats.notes == ()
    reused, exact = results
    assert reused.shape == exact.shape == (1, 3, 16, 16)
    assert torch.isfinite(reused).all()
    assert not torch.equal(reused, exact)


@needs("xfuser")
def test_xdit_knows_the_method_wherever_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package asks for an accelerator when it is imported. Apple's is one that it only names.
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    adapters = importlib.import_module("xfuser.model_executor.cache.adapters")
    xdit = importlib.import_module("pab_servers.xdit")
    monkeypatch.undo()
    xdit.register()
    for name in ("xfuser.model_executor.cache", "xfuser.model_executor.pipelines.base_pipeline"):
        assert sys.modules[name].apply_cache is adapters.apply_cache, name
    pipeline = pipe()
    given = adapters.apply_cache("pab", 12, pipeline, cache_config=json.dumps(LEVEL))
    assert given is pipeline.transformer
    assert reused(pipeline) > 0
    with pytest.raises(ValueError, match="Unknown cache_method"):
        adapters.apply_cache("other", 12, pipe())
