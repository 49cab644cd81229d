"""The plugins for servers, on fakes of their calls, and on the files of their packages."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pab_compile
from helpers import servers
from helpers.captured import SmallDiT
from pab_compile import OptionError

ROOT = Path(__file__).parents[2]
LEVEL = {"level": "balanced", "inner": "eager"}


@pytest.fixture(params=["fakes", "packages"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the plugins."""
    folder = servers.unpacked()
    if request.param == "packages" and folder is None:
        pytest.skip("PAB_SERVERS_PATH names no unpacked packages")
    servers.install(monkeypatch, folder if request.param == "packages" else None)
    return lambda name: importlib.import_module(f"pab_servers.{name}")


class Pipeline(torch.nn.Module):
    """A server's pipeline: a module that runs a loop over its transformer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = SmallDiT(1).requires_grad_(False)
        self.text_encoder = torch.nn.Linear(2, 2)

    def forward(self, seed: int, num_steps: int = 12) -> torch.Tensor:
        noise = torch.Generator().manual_seed(seed)
        latents, prompt = torch.randn(2, 4, 3, 2, 5, generator=noise), torch.ones(2, 7, 4)
        with torch.no_grad():
            for timestep in torch.linspace(1, 1 / num_steps, num_steps):
                latents = (
                    latents - self.transformer(latents, timestep.expand(2), prompt) / num_steps
                )
        return latents


def reused(pipeline: Pipeline) -> int:
    return sum(pab_compile.stats(pipeline.transformer).reused.values())


def test_vllm_omni_finds_the_backend_and_generates_with_it(load: Callable[[str], Any]) -> None:
    vllm = load("vllm_omni")
    vllm.register()
    vllm.register()
    runner = sys.modules["vllm_omni.diffusion.worker.diffusion_model_runner"]
    get, config = runner.get_cache_backend, servers.DiffusionCacheConfig.from_dict(LEVEL)
    for user in ("cache.selector", "worker.gpu_worker"):
        assert get is sys.modules[f"vllm_omni.diffusion.{user}"].get_cache_backend
    assert get("none", {}) is None
    with pytest.raises(ValueError, match="Unsupported cache backend"):
        get("other", {})
    backend, pipeline = get("pab", config), Pipeline()
    assert isinstance(backend, sys.modules["vllm_omni.diffusion.cache.base"].CacheBackend)
    assert not backend.is_enabled()
    backend.enable(pipeline)
    assert backend.is_enabled()
    results = []
    for seed in (1, 2, 1):
        backend.refresh(pipeline, 12)
        results.append(pipeline(seed))
        assert reused(pipeline) > 0
    assert torch.equal(results[0], results[2])
    assert not torch.equal(results[0], results[1])


def test_vllm_omni_starts_afresh_after_a_request_that_was_cancelled(
    load: Callable[[str], Any],
) -> None:
    vllm, pipeline = load("vllm_omni"), Pipeline()
    backend = vllm.backend_class()(LEVEL)
    backend.enable(pipeline)
    expected = pipeline(1)
    dropped: list[int] = []
    reset = pab_compile.reset
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pab_compile, "reset", lambda: (dropped.append(1), reset()))
        backend.refresh(pipeline, 12)
    assert dropped
    assert torch.equal(pipeline(1), expected)


def test_settings_of_other_backends_are_refused(load: Callable[[str], Any]) -> None:
    options_of = load("vllm_omni").options_of
    config = servers.DiffusionCacheConfig.from_dict
    assert options_of(config({"level": "fast"})) == {"level": "fast"}
    assert options_of(None) == options_of(config({})) == {}
    with pytest.raises(OptionError, match="rel_l1_thresh, which belong to other"):
        options_of(config({"level": "fast", "rel_l1_thresh": 0.3}))
    with pytest.raises(OptionError, match="levle"):
        load("configuration").enable(Pipeline(), {"levle": "fast"})


def test_sglang_compiles_if_its_configuration_says_so(
    load: Callable[[str], Any], tmp_path: Path
) -> None:
    sglang = load("sglang")
    sglang.register()
    registry = sys.modules["sglang.srt.plugins.hook_registry"]
    kind, hook, _ = registry.HookRegistry._hooks[sglang.TARGET][-1]
    assert (kind, hook) == (registry.HookType.AROUND, sglang.apply)
    file = tmp_path / "pab.json"
    file.write_text(json.dumps({"pab": LEVEL}))
    pipe, owner = Pipeline(), servers.DiffusersPipeline()
    arguments = SimpleNamespace(cache_dit_config=str(file), enable_torch_compile=False)
    original = servers.DiffusersPipeline._apply_cache_dit
    assert sglang.apply(original, owner, pipe, arguments) is pipe
    pipe(1)
    assert reused(pipe) > 0
    for config in (None, "cache.yaml", {"cache_config": {}}):
        assert sglang.apply(original, owner, pipe, SimpleNamespace(cache_dit_config=config)) == (
            "cache-dit"
        )


@pytest.mark.parametrize(
    ("given", "is_compiled", "words"),
    [
        ({"pab": LEVEL}, True, "Leave that argument out"),
        ({"pab": LEVEL, "cache_config": {}}, False, "has pab, cache_config"),
        ({"pab": "fast"}, False, "with its options"),
        ("none.json", False, "neither JSON nor a file"),
    ],
)
def test_a_wrong_configuration_of_sglang_is_refused(
    load: Callable[[str], Any], given: Any, is_compiled: bool, words: str
) -> None:
    arguments = SimpleNamespace(cache_dit_config=given, enable_torch_compile=is_compiled)
    with pytest.raises(OptionError, match=words):
        load("sglang").apply(None, servers.DiffusersPipeline(), Pipeline(), arguments)


def test_xdit_takes_the_method_and_its_json(load: Callable[[str], Any]) -> None:
    xdit, pipe = load("xdit"), Pipeline()
    xdit.register()
    xdit.register()
    apply_cache = sys.modules["xfuser.model_executor.cache"].apply_cache
    assert apply_cache is sys.modules["xfuser.model_executor.cache.adapters"].apply_cache
    given = apply_cache("pab", num_steps=12, pipe=pipe, cache_config=json.dumps(LEVEL))
    assert given is pipe.transformer
    pipe(1)
    assert reused(pipe) > 0
    with pytest.raises(ValueError, match="Unknown cache_method"):
        apply_cache("other", 12, pipe)
    with pytest.raises(OptionError, match="no JSON"):
        apply_cache("pab", 12, Pipeline(), cache_config="{level")
    with pytest.raises(OptionError, match="neither JSON nor a file"):
        load("configuration").read("[1]")


def parameters(tree: ast.AST, name: str) -> list[str]:
    """The parameters of a function in a file, at any depth."""
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    assert found, name
    return [argument.arg for argument in found[0].args.args]


def test_the_calls_are_those_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = servers.unpacked()
    if folder is None:
        pytest.skip("PAB_SERVERS_PATH names no unpacked packages")

    def tree(name: str) -> ast.Module:
        return ast.parse((folder / name).read_text(encoding="utf-8"))

    omni = "vllm_omni/diffusion"
    runner = (folder / omni / "worker/diffusion_model_runner.py").read_text()
    assert "from vllm_omni.diffusion.cache.selector import get_cache_backend" in runner
    assert "self.cache_backend.refresh(self.pipeline, num_inference_steps)" in runner
    assert "_extra_params" in (folder / omni / "data.py").read_text()
    groups = ("vllm_omni/plugins/__init__.py", "sglang/multimodal_gen/runtime/platforms/plugins.py")
    metadata = (ROOT / "integrations/servers/pyproject.toml").read_text()
    for file in groups:
        found = [
            node.value.value
            for node in ast.walk(tree(file))
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and f'entry-points."{node.value.value}"' in metadata
        ]
        assert found, file
    pipeline = tree("sglang/multimodal_gen/runtime/pipelines/diffusers_pipeline.py")
    assert parameters(pipeline, "_apply_cache_dit") == ["self", "pipe", "server_args"]
    adapters = tree("xfuser/model_executor/cache/adapters/__init__.py")
    assert parameters(adapters, "apply_cache") == list(
        inspect.signature(servers.apply_cache).parameters
    )
