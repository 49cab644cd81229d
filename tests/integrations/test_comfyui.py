"""The nodes for ComfyUI, on a fake of its few calls, and the fake against a real ComfyUI."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import pab_compile
from helpers import comfy, comfy_nodes, real_comfy

SIGMAS = torch.linspace(1, 0, 13)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The node pack, in the fake."""
    comfy.install(monkeypatch, tmp_path)
    with comfy_nodes.loaded() as pack:
        yield pack


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
    assert "my run" in (tmp_path / "output" / "my run.html").read_text()


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
    executor = comfy.Executor(lambda: None, SimpleNamespace(sampler_function=len), [])
    assert patch.timesteps_of(executor, None, SIGMAS) is None


def test_the_model_before_the_node_stays_as_it_is_and_a_second_node_replaces_the_first(
    nodes: ModuleType,
) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    once = patched(nodes, plain)
    twice = patched(nodes, once)
    assert plain.wrappers == {}
    for kind, number in (("apply_model", 2), ("sampler_sample", 1)):
        assert len(once.all_wrappers(kind)) == len(twice.all_wrappers(kind)) == number


def test_weights_that_are_moved_away_and_back_are_seen(nodes: ModuleType) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain)
    before = comfy.sample(model, comfy.sample_euler, SIGMAS)
    module = plain.get_model_object("diffusion_model")
    for parameter in module.parameters():  # unloaded and loaded again
        parameter.data = parameter.data.clone()
    assert torch.equal(comfy.sample(model, comfy.sample_euler, SIGMAS), before)


def test_a_patch_of_attentions_holds_for_a_model_that_was_compiled_without(
    nodes: ModuleType,
) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain, ranges={})
    comfy.sample(model, comfy.sample_euler, SIGMAS)
    halved = [each.clone() for each in (plain, model)]
    for each in halved:
        options = each.model_options["transformer_options"]
        options["optimized_attention_override"] = lambda result: 0.5 * result
    expected, found = (comfy.sample(each, comfy.sample_euler, SIGMAS) for each in halved)
    torch.testing.assert_close(found, expected)


def test_weights_that_hooks_change_during_a_generation_are_announced(nodes: ModuleType) -> None:
    plain = comfy.ModelPatcher(comfy.BaseModel())
    model = patched(nodes, plain)
    hook = SimpleNamespace(strength=1.0)
    model.current_hooks = SimpleNamespace(hooks=[hook])

    def fade(sigma: float) -> None:
        hook.strength = 1.0 if sigma > 0.5 else 0.0

    comfy.sample(model, comfy.sample_euler, SIGMAS)
    assert pab_compile.stats(plain.get_model_object("diffusion_model")).notes == ()
    comfy.sample(model, comfy.sample_euler, SIGMAS, fade)
    [note] = pab_compile.stats(plain.get_model_object("diffusion_model")).notes
    assert "weights or buffers changed" in note


def test_weights_that_are_made_at_every_call_are_not_compiled_and_that_is_said(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging, "warning", said.append)
    plain = comfy.ModelPatcher(comfy.BaseModel())
    module = plain.get_model_object("diffusion_model")
    module.weight_function = [lambda weight: weight]  # as a LoRA of a part that is not loaded
    expected = comfy.sample(plain, comfy.sample_euler, SIGMAS)
    assert torch.equal(comfy.sample(patched(nodes, plain), comfy.sample_euler, SIGMAS), expected)
    assert ["whole_output" in text for text in said] == [True]
    assert plain.get_model_object("diffusion_model") is module
    module.weight_function = []
    found = comfy.sample(patched(nodes, plain), comfy.sample_euler, SIGMAS)
    assert not torch.equal(found, expected)


def test_hooks_of_prompts_that_appear_later_are_announced(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = importlib.import_module("pab_nodes.patch")
    announced: list[bool] = []
    monkeypatch.setattr(pab_compile, "weights_changed", lambda: announced.append(True))
    weights, hooks = patch.HookedWeights(), SimpleNamespace(hooks=[SimpleNamespace(strength=1.0)])
    sigmas = torch.ones(1), torch.ones(1)
    for sigma in sigmas:
        weights.called({"uuids": ["a"], "sigmas": sigma}, hooks)
        weights.called({"uuids": ["b"], "sigmas": sigma}, None)
    assert announced == []
    weights.called({"uuids": ["c"], "sigmas": sigmas[1]}, None)
    assert announced == [True]


def test_calls_of_windows_and_prompts_are_told_apart(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = importlib.import_module("pab_nodes.calls")
    told: list[Any] = []

    @contextlib.contextmanager
    def stated(*step: Any) -> Iterator[None]:
        told.append(step or "apart")
        yield

    said: list[str] = []
    monkeypatch.setattr(pab_compile, "step", stated)
    monkeypatch.setattr(pab_compile, "generation", stated)
    monkeypatch.setattr(logging, "warning", said.append)
    named = calls.NamedCalls([1.0, 0.5])
    for sigma, frames, prompt in (
        (1.0, [0, 1], "a"),
        (1.0, [1, 2], "a"),
        (0.5, [1, 2], "a"),
        (0.5, [0, 1], "b"),
        (0.5, [0, 1], "a"),
        (0.5, [2, 0], "a"),  # it moved
    ):
        window = SimpleNamespace(index_list=frames)
        options = {"sigmas": torch.tensor([sigma]), "uuids": [prompt], "context_window": window}
        with named.around(options):
            pass
    lanes = [
        (0, 2, "call 0"),
        (0, 2, "call 1"),
        (1, 2, "call 1"),
        (1, 2, "call 2"),
        (1, 2, "call 0"),
    ]
    assert told == [*lanes, "apart"]
    assert len(said) == 1
    assert calls.need_names(SimpleNamespace(conds={"positive": [{"hooks": object()}]}), {})
    assert calls.need_names(SimpleNamespace(), {"model_options": {"context_handler": object()}})
    assert not calls.need_names(SimpleNamespace(conds={"positive": [{}], "negative": None}), {})


def test_an_attention_that_dynamo_cannot_trace_is_refused_where_parts_are_reused(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.ldm.modules import attention  # type: ignore[import-not-found]

    patch = importlib.import_module("pab_nodes.patch")
    monkeypatch.setattr(attention.optimized_attention, "__name__", "attention_sub_quad")
    plain = comfy.ModelPatcher(comfy.BaseModel())
    with pytest.raises(RuntimeError, match="--use-pytorch-cross-attention"):
        patched(nodes, plain)
    for options in ({"ranges": {}}, {"ranges": "linear3", "cut": "output"}):
        assert patch.patched(plain, options) is not plain


def test_options_of_the_node(nodes: ModuleType) -> None:
    options_of = importlib.import_module("pab_nodes.nodes").options_of
    assert options_of("fast") == {"ranges": "linear4"}
    assert options_of("off") == {"ranges": {}}
    assert options_of("fast", whole_output=True) == {"ranges": "linear4", "cut": "output"}
    assert options_of("fast", " plan.json ", "8GiB") == {
        "plan": "plan.json",
        "cache_budget": "8GiB",
    }


CHECK = """
import inspect, sys
sys.path.append(sys.argv[1])
from helpers import real_comfy
real_comfy.load()
import comfy.cli_args
comfy.cli_args.args.use_pytorch_cross_attention = False
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
names = list(inspect.signature(KSAMPLER.sample).parameters)
assert names[1:4] == ["model_wrap", "sigmas", "extra_args"], names
executor = WrapperExecutor.new_class_executor(max, "owner", [lambda e, *a: (e.class_obj, e(*a))])
assert executor.execute(1, 2) == ("owner", 2)
assert folder_paths.get_output_directory()
assert (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL) == ("apply_model", "diffusion_model")
from comfy.hooks import HookGroup, WeightHook
from comfy.ldm.modules import attention
from comfy.model_base import BaseModel
names = list(inspect.signature(BaseModel._apply_model).parameters)
assert names[1:7] == ["x", "t", "c_concat", "c_crossattn", "control", "transformer_options"], names
assert HookGroup().hooks == [] and WeightHook().strength_model == 1.0
assert attention.optimized_attention.__name__ == "attention_sub_quad"  # on a CPU, without a flag
"""


def test_the_calls_are_those_of_a_real_comfyui() -> None:
    if (path := real_comfy.path()) is None:
        pytest.skip("COMFYUI_PATH names no ComfyUI")
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", CHECK, tests], cwd=path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
