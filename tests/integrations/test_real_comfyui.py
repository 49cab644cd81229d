"""The nodes in the ComfyUI that ``COMFYUI_PATH`` names: its models, patchers and samplers."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import pab_compile
from helpers import comfy_nodes, real_comfy
from helpers.comfy_models import MODELS
from helpers.comfy_oracle import KINDS, Broadcast

pytestmark = [
    pytest.mark.skipif(real_comfy.path() is None, reason="COMFYUI_PATH names no ComfyUI"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # ComfyUI's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

WAN = "Wan 2.1"
RANGES = {"full": 2, "cross": 3}
RULE: dict[str, Any] = {"ranges": RANGES, "window": (0.0, 1.0)}


@pytest.fixture
def nodes() -> Iterator[ModuleType]:
    """The node pack, in a ComfyUI that runs its nodes in inference mode."""
    real_comfy.load()
    with comfy_nodes.loaded() as pack, torch.inference_mode():
        yield pack


def patched(patcher: Any, **options: Any) -> Any:
    """The model of the node, with eager pieces."""
    patch = importlib.import_module("pab_nodes.patch")
    return patch.patched(patcher, {**RULE, **options, "inner": "eager"})


def stats_of(patcher: Any) -> Any:
    return pab_compile.stats(patcher.get_model_object("diffusion_model"))


def num_compiled() -> int:
    """How many graphs Dynamo has made so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def expected(patcher: Any, name: str = WAN, **how: Any) -> torch.Tensor:
    """What the plan gives in eager code. It must not be what the model gives without a plan."""
    module = patcher.get_model_object("diffusion_model")
    with Broadcast(module, KINDS[name], RANGES) as oracle:
        result = real_comfy.sample(patcher, name, **how)
    assert oracle.reused > 0
    assert not torch.equal(result, real_comfy.sample(patcher, name, **how))
    return result


def check(patcher: Any, model: Any, name: str = WAN, **how: Any) -> torch.Tensor:
    """A generation is the oracle's, reuses, and gives the same again without compiling."""
    found = real_comfy.sample(model, name, **how)
    stats = stats_of(patcher)
    assert sum(stats.reused.values()) > 0
    assert stats.notes == ()
    compiled = num_compiled()
    assert torch.equal(real_comfy.sample(model, name, **how), found)
    assert num_compiled() == compiled
    torch.testing.assert_close(found, expected(patcher, name, **how))
    return found


@pytest.mark.parametrize("name", [WAN, "Flux", "LTX Video", "Qwen-Image", "Stable Diffusion 3"])
def test_a_level_reuses_in_the_first_generation_and_off_changes_nothing(
    nodes: ModuleType, name: str
) -> None:
    patcher = real_comfy.patcher(name)
    plain = real_comfy.sample(patcher, name)
    torch.testing.assert_close(real_comfy.sample(patched(patcher, ranges={}), name), plain)
    model = patched(patcher, ranges="linear3")
    first = real_comfy.sample(model, name)
    stats = stats_of(patcher)
    assert (stats.steps, stats.notes) == (8, ())
    assert sum(stats.reused.values()) > sum(stats.computed.values())
    assert not torch.equal(first, plain)
    compiled = num_compiled()
    assert torch.equal(real_comfy.sample(model, name), first)
    assert num_compiled() == compiled


def test_the_nodes_themselves_run_and_report(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    patcher = real_comfy.patcher(WAN)
    (model,) = nodes.NODE_CLASS_MAPPINGS["PABModel"]().apply(patcher, "balanced", "", "8MiB")
    result = real_comfy.sample(model, WAN)
    report = nodes.NODE_CLASS_MAPPINGS["PABReport"]()
    assert "8 steps" in report.report(model, {"samples": result}, "run")["result"][0]
    assert (tmp_path / "run.html").exists()


def test_prompts_sizes_guidance_and_samplers_give_what_the_plan_says(nodes: ModuleType) -> None:
    for name in KINDS:
        patcher = real_comfy.patcher(name)
        model = patched(patcher)
        check(patcher, model, name)
        check(patcher, model, name, seed=3)  # other prompts
        check(patcher, model, name, negative_tokens=7)  # two calls per step
        check(patcher, model, name, tokens=9, wider=4, steps=9)
        check(patcher, model, name, cfg=1.0)
        for sampler in ("dpmpp_2m", "uni_pc", "euler_ancestral", "lcm"):
            check(patcher, model, name, sampler=sampler)


def test_samplers_that_call_the_model_in_between_are_not_told_a_schedule(
    nodes: ModuleType,
) -> None:
    import comfy.patcher_extension
    import comfy.samplers

    once = importlib.import_module("pab_nodes.patch").ONE_CALL_PER_STEP
    patcher = real_comfy.patcher(WAN)
    seen: list[float] = []
    told: list[Any] = []

    def outside(executor: Any, guider: Any, sigmas: Any, *args: Any, **kwargs: Any) -> Any:
        told[:] = [executor.class_obj.sampler_function.__name__, sigmas[:-1]]
        return executor(guider, sigmas, *args, **kwargs)

    def inside(executor: Any, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(float(sigma[0]))
        return executor(x, sigma, *args, **kwargs)

    kinds = comfy.patcher_extension.WrappersMP
    patcher.add_wrapper_with_key(kinds.SAMPLER_SAMPLE, "test", outside)
    patcher.add_wrapper_with_key(kinds.PREDICT_NOISE, "test", inside)
    for sampler in comfy.samplers.SAMPLER_NAMES:
        seen.clear()
        real_comfy.sample(patcher, WAN, sampler=sampler, steps=4, cfg=1.0)
        sigmas = told[1]
        calls_once = len(seen) == len(sigmas) and torch.allclose(torch.tensor(seen), sigmas, 2e-5)
        assert calls_once or told[0] not in once, sampler
    model = patched(patcher)
    plain = real_comfy.sample(patcher, WAN, sampler="heun")
    found = real_comfy.sample(model, WAN, sampler="heun")
    assert torch.equal(real_comfy.sample(model, WAN, sampler="heun"), found)
    assert not torch.equal(found, plain)


def test_a_model_may_be_unloaded_and_another_one_may_run(nodes: ModuleType) -> None:
    import comfy.model_management as management

    one, two = real_comfy.patcher(WAN), real_comfy.patcher(WAN, seed=5)
    models = patched(one), patched(two)
    first = check(one, models[0])
    assert not torch.equal(check(two, models[1]), first)
    management.unload_all_models()
    assert torch.equal(check(one, models[0]), first)
    assert torch.equal(check(one, patched(models[0])), first)  # a second node


def test_a_generation_that_was_cancelled_leaves_nothing(nodes: ModuleType) -> None:
    import comfy.model_management as management

    patcher = real_comfy.patcher(WAN)
    model = patched(patcher)

    def cancel(step: int, *_: Any) -> None:
        management.interrupt_current_processing(step == 3)
        management.throw_exception_if_processing_interrupted()

    for seed in (0, 9):
        with pytest.raises(management.InterruptProcessingException):
            real_comfy.sample(model, WAN, callback=cancel)
        check(patcher, model, seed=seed)


@pytest.mark.parametrize("cast", [None, torch.float32, torch.bfloat16])
def test_loras_and_weights_that_are_cast_on_the_fly(nodes: ModuleType, cast: Any) -> None:
    dtype = torch.float32 if cast is None else torch.float8_e4m3fn
    patcher = real_comfy.patcher(WAN, dtype=dtype, cast=cast)
    model = patched(patcher)
    before = check(patcher, model)
    behind = check(with_lora(patcher, 1.0), with_lora(model, 1.0))
    assert not torch.equal(behind, before)
    weaker = with_lora(patcher, 0.5)
    assert not torch.equal(check(weaker, patched(weaker)), behind)
    assert torch.equal(check(patcher, model), before)


def test_a_lora_in_parts_that_are_not_loaded_is_computed(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    def load_little(models: list[Any], **_: Any) -> None:
        for model in models:
            model.unpatch_model()
            model.load(torch.device("cpu"), lowvram_model_memory=30_000)

    monkeypatch.setattr(management, "load_models_gpu", load_little)
    patcher = with_lora(real_comfy.patcher(WAN), 1.0)
    expected = real_comfy.sample(patcher, WAN)
    assert patcher.lowvram_patch_counter() > 0
    assert torch.equal(real_comfy.sample(patched(patcher), WAN), expected)
    whole = real_comfy.sample(patched(patcher, ranges="linear3", cut="output"), WAN)
    assert stats_of(patcher).reused["output"] > 0
    assert not torch.equal(whole, expected)


def test_patches_of_attentions_hold_whenever_they_are_made(nodes: ModuleType) -> None:
    """A model that was compiled without them must not run instead."""

    def halved(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) * 0.5

    def overridden(model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = halved
        return clone

    patcher = real_comfy.patcher(WAN)
    model = patched(patcher)
    without = check(patcher, model)
    after = check(overridden(patcher), overridden(model))
    assert not torch.equal(after, without)
    assert torch.equal(check(overridden(patcher), patched(overridden(patcher))), after)
    assert torch.equal(check(patcher, model), without)


def test_hooks_that_change_weights_during_a_generation_are_seen(nodes: ModuleType) -> None:
    import comfy.hooks

    patcher = real_comfy.patcher(WAN)
    hook = comfy.hooks.create_hook_lora(lora_of(patcher), strength_model=1.0, strength_clip=0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.0, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hook.set_keyframes_on_hooks(frames)
    positive = comfy.hooks.set_hooks_for_conditioning(real_comfy.prompt(WAN), hook)
    model = patched(patcher)
    found = real_comfy.sample(model, WAN, positive=positive, cfg=1.0)
    assert any("weights" in note for note in stats_of(patcher).notes)
    torch.testing.assert_close(found, expected(patcher, positive=positive, cfg=1.0))


def in_windows(patcher: Any, schedule: str) -> Any:
    """Let a model generate two frames at a time."""
    import comfy.context_windows as windows

    patcher.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(schedule),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=2,
        context_overlap=1,
        dim=2,
    )
    return patcher


@pytest.mark.parametrize("negative_tokens", [None, 7])
def test_every_window_of_a_long_video_reuses_its_own_outputs(
    nodes: ModuleType, negative_tokens: int | None
) -> None:
    """With guidance in one call, and in two."""
    patcher = in_windows(real_comfy.patcher(WAN), "standard_static")
    check(patcher, patched(patcher), longer=3, negative_tokens=negative_tokens)


def test_windows_that_move_compute_and_that_is_said(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging, "warning", said.append)
    patcher = in_windows(real_comfy.patcher(WAN), "looped_uniform")
    how: dict[str, Any] = {"longer": 3, "steps": 4}
    found = real_comfy.sample(patched(patcher), WAN, **how)
    torch.testing.assert_close(found, expected(patcher, **how))
    assert ["standard_static" in text for text in said] == [True]


def test_prompts_that_differ_in_their_hooks_alone_reuse_their_own_outputs(
    nodes: ModuleType,
) -> None:
    import comfy.hooks

    patcher = real_comfy.patcher(WAN)
    prompt = real_comfy.prompt(WAN)
    hook = comfy.hooks.create_hook_lora(lora_of(patcher), strength_model=1.0, strength_clip=0.0)
    both = [*comfy.hooks.set_hooks_for_conditioning(prompt, hook), *prompt]
    check(patcher, patched(patcher), positive=both, cfg=1.0)


@pytest.mark.parametrize("first", [0, 7])
def test_a_controlnet_acts_at_every_step(nodes: ModuleType, first: int) -> None:
    """Also at those that reuse: it adds something else at every step, or begins at the last."""
    import comfy.controlnet

    class Control(comfy.controlnet.ControlBase):
        def __init__(self, first: int) -> None:
            super().__init__()
            self.first, self.step = first, 0

        def pre_run(self, *_: Any) -> None:
            self.step = 0

        def get_control(self, x: Any, t: Any, cond: Any, *_: Any) -> dict[str, list[Any]]:
            added = torch.full((1, 1, 1), (self.step >= self.first) * 0.1 * (1 + self.step))
            self.step += 1
            return {"input": [added], "output": [added]}

    def controlled(first: int) -> Any:
        tokens, entries = real_comfy.prompt("Flux")[0]
        return [[tokens, {**entries, "control": Control(first)}]]

    patcher = real_comfy.patcher("Flux")
    how: dict[str, Any] = {"positive": controlled(first), "cfg": 1.0}
    plain = real_comfy.sample(patcher, "Flux", **how)
    off = real_comfy.sample(patched(patcher, ranges={}), "Flux", **how)
    torch.testing.assert_close(off, plain)
    model = patched(patcher, ranges="linear3")
    found = real_comfy.sample(model, "Flux", **how)
    assert sum(stats_of(patcher).reused.values()) > 0
    never = real_comfy.sample(model, "Flux", positive=controlled(8), cfg=1.0)
    assert not torch.equal(found, never)
    assert torch.equal(real_comfy.sample(model, "Flux", **how), found)


def test_whole_steps_of_a_model_that_breaks_into_many_graphs(nodes: ModuleType) -> None:
    patcher = real_comfy.patcher("HiDream")
    plain = real_comfy.sample(patcher, "HiDream")
    found = real_comfy.sample(patched(patcher, ranges="linear3", cut="output"), "HiDream")
    stats = stats_of(patcher)
    assert stats.reused["output"] > stats.computed["output"]
    assert not torch.equal(found, plain)


def test_an_attention_that_cannot_be_traced_is_refused_with_what_to_do(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.ldm.modules import attention

    monkeypatch.setattr(attention, "optimized_attention", attention.attention_sub_quad)
    with pytest.raises(RuntimeError, match="--use-pytorch-cross-attention"):
        patched(real_comfy.patcher(WAN))


def test_all_tiny_models_are_models_of_this_comfyui(nodes: ModuleType) -> None:
    import comfy.supported_models as supported

    for tiny in MODELS.values():
        config = getattr(supported, tiny.config)
        assert config in supported.models
        for key in ("image_model", "audio_model"):
            assert config.unet_config.get(key) == tiny.unet.get(key)


def lora_of(patcher: Any) -> dict[str, torch.Tensor]:
    """The file of an adapter of all linear layers."""
    random = torch.Generator().manual_seed(1)
    found: dict[str, torch.Tensor] = {}
    for name, module in patcher.get_model_object("diffusion_model").named_modules():
        if isinstance(module, torch.nn.Linear):
            rows, columns = module.weight.shape
            shapes = SimpleNamespace(up=(rows, 2), down=(2, columns))
            for part, shape in vars(shapes).items():
                drawn = torch.randn(shape, generator=random)
                found[f"diffusion_model.{name}.lora_{part}.weight"] = 0.3 * drawn
    return found


def with_lora(model: Any, strength: float) -> Any:
    """A clone with an adapter, as ComfyUI's node makes it."""
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    clone = model.clone()
    assert clone.add_patches(comfy.lora.load_lora(lora_of(model), keys), strength)
    return clone
