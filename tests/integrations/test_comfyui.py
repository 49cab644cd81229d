"""The nodes for ComfyUI, on a fake of its few calls, and the fake against a real ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pab_compile
from helpers import comfy

ROOT = Path(__file__).parents[2]
SIGMAS = torch.linspace(1, 0, 13)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The node pack, as ComfyUI loads a folder of ``custom_nodes``."""
    comfy.install(monkeypatch, tmp_path)
    folder = ROOT / "integrations" / "comfyui"
    where = {"submodule_search_locations": [str(folder)]}
    spec = importlib.util.spec_from_file_location("pab_nodes", folder / "__init__.py", **where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in [name for name in sys.modules if name.startswith("pab_nodes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pab_nodes", module)
    spec.loader.exec_module(module)
    return module


def patched(nodes: ModuleType, patcher: Any, **options: Any) -> Any:
    """The model of the node, with eager pieces."""
    patch = importlib.import_module("pab_nodes.patch")
    given = importlib.import_module("pab_nodes.nodes").options_of("balanced") | options
    return patch.patched(patcher, {**given, "inner": "eager"})


def test_every_node_has_what_comfyui_asks_for(nodes: ModuleType) -> None:
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = node.INPUT_TYPES()
        names = {name for group in inputs.values() for name in group}
        function = inspect.signature(getattr(node, node.FUNCTION))
        assert set(function.parameters) - {"self"} == names
        assert node.RETURN_TYPES
        assert node.CATEGORY


def test_a_sampler_reuses_in_its_first_generation_and_says_so(
    nodes: ModuleType, tmp_path: Path
) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain)
    first = comfy.sample(model, comfy.sample_euler, SIGMAS)
    stats = pab_compile.stats(plain.get_model_object("diffusion_model"))
    assert (stats.steps, stats.notes) == (12, ())
    assert stats.reused["spatial"] > 0
    again = comfy.sample(model, comfy.sample_euler, SIGMAS)
    assert torch.equal(first, again)
    assert not torch.equal(first, comfy.sample(plain, comfy.sample_euler, SIGMAS))
    report = nodes.NODE_CLASS_MAPPINGS["PABReport"]()
    said = report.report(model, {"samples": first}, "../my run")
    assert "12 steps" in said["result"][0]
    assert "my run" in (tmp_path / "my run.html").read_text()


def test_a_level_that_is_off_changes_nothing(nodes: ModuleType) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain, ranges={})
    expected = comfy.sample(plain, comfy.sample_euler, SIGMAS)
    torch.testing.assert_close(comfy.sample(model, comfy.sample_euler, SIGMAS), expected)


def test_a_sampler_with_calls_in_between_is_told_no_schedule(nodes: ModuleType) -> None:
    model = patched(nodes, comfy.ModelPatcher(comfy.BaseModel()))
    result = comfy.sample(model, comfy.sample_heun, SIGMAS)
    assert result.isfinite().all()
    patch = importlib.import_module("pab_nodes.patch")
    executor = comfy.Executor(lambda: None, comfy.SimpleNamespace(sampler_function=len), [])
    assert patch.timesteps_of(executor, None, SIGMAS) is None


def test_the_model_before_the_node_stays_as_it_is_and_a_second_node_replaces_the_first(
    nodes: ModuleType,
) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    once = patched(nodes, plain)
    twice = patched(nodes, once)
    assert plain.wrappers == {}
    for kind in ("apply_model", "sampler_sample"):
        assert len(once.all_wrappers(kind)) == len(twice.all_wrappers(kind)) == 1


def test_weights_that_are_moved_away_and_back_are_seen(nodes: ModuleType) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain)
    before = comfy.sample(model, comfy.sample_euler, SIGMAS)
    module = plain.get_model_object("diffusion_model")
    for parameter in module.parameters():  # unloaded and loaded again
        parameter.data = parameter.data.clone()
    assert torch.equal(comfy.sample(model, comfy.sample_euler, SIGMAS), before)


def test_options_of_the_node(nodes: ModuleType) -> None:
    options_of = importlib.import_module("pab_nodes.nodes").options_of
    assert options_of("fast") == {"ranges": "linear4"}
    assert options_of("off") == {"ranges": {}}
    assert options_of("fast", " plan.json ", "8GiB") == {
        "plan": "plan.json",
        "cache_budget": "8GiB",
    }


CHECK = """
import inspect, sys
sys.argv = ["main.py", "--cpu"]
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import KSAMPLER
from comfy_api.torch_helpers import set_torch_compile_wrapper
import folder_paths
assert WrappersMP.SAMPLER_SAMPLE == "sampler_sample"
for name in ("clone", "get_model_object", "add_wrapper_with_key", "remove_wrappers_with_key"):
    assert callable(getattr(ModelPatcher, name)), name
parameters = inspect.signature(set_torch_compile_wrapper).parameters
assert {"model", "backend", "options", "keys"} <= set(parameters)
assert "sampler_function" in inspect.signature(KSAMPLER.__init__).parameters
assert list(inspect.signature(KSAMPLER.sample).parameters)[1:3] == ["model_wrap", "sigmas"]
executor = WrapperExecutor.new_class_executor(max, "owner", [lambda e, *a: (e.class_obj, e(*a))])
assert executor.execute(1, 2) == ("owner", 2)
assert folder_paths.get_output_directory()
"""


def test_the_calls_are_those_of_a_real_comfyui() -> None:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    done = subprocess.run(
        [sys.executable, "-c", CHECK], cwd=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
