"""Bad input through the public API: an error of our own that says what was found and what to do.

``torch.compile`` wraps what a backend raises while it compiles; none of these may arrive wrapped.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers.captured import SmallDiT
from helpers.latte import compiled_pab, ddim_timesteps, draw_latents, draw_prompt, tiny_latte
from pab_compile import (
    GradModeError,
    OptionError,
    PabError,
    PlanError,
    UnsupportedModelError,
)

LATENTS = torch.randn(2, 4, 3, 2, 5)
PROMPT = torch.randn(2, 7, 4)
TABLES = {num_steps: ddim_timesteps(num_steps) for num_steps in (4, 5)}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return SmallDiT(1).requires_grad_(False)


def call(model: Callable[..., Any], step: int = 0, num_steps: int = 4) -> torch.Tensor:
    """One step of a generation."""
    timestep = TABLES[num_steps][step]
    with torch.no_grad():
        return model(LATENTS, timestep=timestep.expand(2), prompt=PROMPT)


def refused(error: type[PabError], run: Callable[[], object]) -> str:
    """The message of an error that arrives as what it is, without another one around it."""
    with pytest.raises(PabError) as caught:
        run()
    assert type(caught.value) is error
    return str(caught.value)


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"rangs": {}}, "Unknown option 'rangs'. Did you mean 'ranges'?"),
    "unknown kind": ({"ranges": {"spacial": 2}}, "Did you mean 'spatial'?"),
    "unknown preset": ({"ranges": "pab264"}, "Did you mean 'pab246'?"),
    "range of 0": ({"ranges": {"spatial": 0}}, "a range is an integer of at least 1"),
    "negative range": ({"ranges": {"spatial": -1}}, "a range is an integer of at least 1"),
    "fractional range": ({"ranges": {"spatial": 2.5}}, "a range is an integer of at least 1"),
    "boolean range": ({"ranges": {"spatial": True}}, "a range is an integer of at least 1"),
    "reversed window": ({"window": (0.8, 0.2)}, "reversed"),
    "window beyond the steps": ({"window": (0.2, 1.2)}, "fractions of the steps lie in [0, 1]"),
    "negative timesteps": ({"window": (-10, 10)}, "timestep values are not negative"),
    "mixed window": ({"window": (0.1, 900)}, "both bounds are floats"),
    "plan and ranges": ({"plan": "p.json", "ranges": {}}, "the one or the other"),
}


@pytest.mark.parametrize("case", WRONG_OPTIONS)
def test_a_wrong_option_is_refused_by_the_first_call_and_by_explain(case: str) -> None:
    options, words = WRONG_OPTIONS[case]
    model, latents = WithoutClock(), torch.randn(2, 6, 4)
    with torch.no_grad():
        compiled = compiled_pab(model, **options)
        assert words in refused(OptionError, lambda: compiled(latents))
        explain = lambda: pab_compile.explain(model, latents, options=options)  # noqa: E731
        assert words in refused(OptionError, explain)


def test_mode_and_options_at_once_are_refused_by_torch_itself(model: torch.nn.Module) -> None:
    with pytest.raises(RuntimeError, match="mode or options"):
        torch.compile(model, backend="pab", mode="default", options={"inner": "eager"})


def plan_file(path: Path, **changes: Any) -> str:
    """A plan for four steps of the model, with some of it replaced."""
    sites = {"blocks.0:spatial": ["C", 0, 0, 0]}
    content = {"format": "pab_compile.plan/1", "num_steps": 4, "sites": sites} | changes
    path.write_text(json.dumps(content))
    return str(path)


def test_the_plan_file_of_these_tests_is_right_where_nothing_is_replaced(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    compiled = compiled_pab(model, plan=plan_file(tmp_path / "plan.json"))
    with pab_compile.generation():
        for step in range(4):
            call(compiled, step)
    assert pab_compile.stats(compiled).reused["spatial"] == 3
    assert pab_compile.stats(compiled).notes == ()


def test_a_first_step_that_the_plan_reuses_and_that_may_be_a_warm_up_is_said(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    compiled = compiled_pab(model, plan=plan_file(tmp_path / "plan.json"))
    for step in range(4):
        call(compiled, step)  # a function for every step
    stats = pab_compile.stats(compiled)
    assert stats.reused["spatial"] == 0
    [note] = stats.notes
    assert note.startswith("the outputs of the first step were not reused")
    assert "pab_compile.generation()" in note


@pytest.mark.parametrize(
    ("is_stated", "strip", "begins"),
    [(True, "CCpp", []), (False, "CC--", ["the outputs of the first step were not reused"])],
)
def test_a_prediction_without_the_first_step_repeats_and_says_so(
    model: torch.nn.Module, tmp_path: Path, is_stated: bool, strip: str, begins: list[str]
) -> None:
    plan = plan_file(tmp_path / "plan.json", sites={"blocks.0:spatial": ["C", "C", 1, 1]})
    compiled = compiled_pab(model, plan=plan)
    with pab_compile.generation() if is_stated else nullcontext():
        for step in range(4):
            call(compiled, step)
    stats = pab_compile.stats(compiled)
    strips = zip(stats.timeline.sites, stats.timeline.strips(), strict=True)
    assert [letters for row, letters in strips if row.kind == "spatial"] == [strip]
    assert [note.partition(", since")[0] for note in stats.notes] == begins


def test_a_plan_file_that_is_not_there_or_no_json_is_refused(tmp_path: Path) -> None:
    path, latents = tmp_path / "plan.json", torch.randn(2, 6, 4)
    for content in (None, "", "{", "C C - -"):
        if content is not None:
            path.write_text(content)
        compiled = compiled_pab(WithoutClock(), plan=str(path))
        with torch.no_grad():
            message = refused(PlanError, lambda compiled=compiled: compiled(latents))  # type: ignore[misc]
        why = "does not exist" if content is None else "cannot be read as JSON"
        assert f"{str(path)!r} {why}" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "something/1"}, 'lacks "format": "pab_compile.plan/1"'),
        ({"num_steps": 0}, '"num_steps" must be a positive integer'),
        ({"sites": {"blocks.0:spatial": ["C", 0]}}, "needs 4 entries, found 2 entries"),
        ({"sites": {"blocks.0:spatial": ["C", 0, 9, 0]}}, "found 9"),
        ({"sites": {"blocks.7.attn": ["C", 0, 0, 0]}}, "first 'blocks.7.attn'"),
    ],
    ids=str,
)
def test_a_plan_file_that_does_not_fit_is_refused(
    changes: dict[str, Any], words: str, model: torch.nn.Module, tmp_path: Path
) -> None:
    path = plan_file(tmp_path / "plan.json", **changes)
    message = refused(PlanError, lambda: call(compiled_pab(model, plan=path)))
    assert words in message
    assert "plan.json" in message


def test_a_plan_file_for_another_number_of_steps_is_refused(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    path = plan_file(tmp_path / "plan.json")
    message = refused(PlanError, lambda: call(compiled_pab(model, plan=path), num_steps=5))
    assert "made for 4 steps, but this generation has 5" in message


@pytest.mark.parametrize("answer", [-1, 5, "reuse", 0.5])
def test_a_plan_function_that_answers_nonsense_is_refused(answer: Any) -> None:
    model = SmallDiT(1).requires_grad_(False)
    compiled = compiled_pab(model, plan=lambda *_: answer)
    inputs = (torch.randn(2, 4, 3, 2, 5), TABLES[4][0].expand(2), torch.randn(2, 7, 4))
    assert f"found {answer!r}" in refused(PlanError, lambda: compiled(*inputs))


def test_gradients_are_refused_where_something_needs_them() -> None:
    model = SmallDiT(1).requires_grad_(True)
    compiled = compiled_pab(model)
    inputs = {"timestep": ddim_timesteps(4)[:1].expand(2), "prompt": PROMPT}
    message = refused(GradModeError, lambda: compiled(LATENTS, **inputs))
    assert "torch.no_grad()" in message
    assert "requires_grad_(False)" in message
    with torch.no_grad():
        assert torch.equal(compiled(LATENTS, **inputs), model(LATENTS, **inputs))


def test_gradients_are_refused_also_after_calls_without() -> None:
    model = SmallDiT(1).requires_grad_(True)
    compiled = compiled_pab(model)
    call(compiled)
    inputs = {"timestep": ddim_timesteps(4)[:1].expand(2), "prompt": PROMPT}
    refused(GradModeError, lambda: compiled(LATENTS, **inputs))


def test_grad_mode_does_no_harm_where_nothing_needs_gradients(model: torch.nn.Module) -> None:
    compiled = compiled_pab(model)
    inputs = {"timestep": ddim_timesteps(4)[:1].expand(2), "prompt": PROMPT}
    assert torch.equal(compiled(LATENTS, **inputs), model(LATENTS, **inputs))


class WithoutAttention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(4, 4)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.proj(latents) + torch.sin(timestep)[:, None, None]


class WithoutClock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(4, 12)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(latents).chunk(3, -1)
        return latents + torch.nn.functional.scaled_dot_product_attention(q, k, v)


class WithoutLayout(torch.nn.Module):
    """Rows of eight numbers, cut out of channels, rows and columns alike."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.time = torch.nn.Linear(8, 24), torch.nn.Linear(1, 8)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = latents.reshape(len(latents), -1, 8) + self.time(timestep.sin()[:, None])[:, None]
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x.reshape(latents.shape)


def test_a_latent_layout_that_is_stated_is_not_guessed() -> None:
    model = WithoutLayout().requires_grad_(False)
    inputs = (torch.randn(2, 6, 4, 6), torch.rand(2))
    options = {"axes": {"latents": "b c h w"}}
    assert len(pab_compile.explain(model, *inputs, options=options).sites) == 1


UNSUPPORTED: dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], list[str]]] = {
    "no attention": (
        WithoutAttention(),
        (torch.randn(2, 6, 4), torch.rand(2)),
        ["No attention was found", "Is this the denoising model?", "b c t h w"],
    ),
    "no clock": (
        WithoutClock(),
        (torch.randn(2, 6, 4),),
        ["No timestep was found", "no input besides the latents 'latents'", "compile that model"],
    ),
    "no layout": (
        WithoutLayout().requires_grad_(False),
        (torch.randn(2, 6, 4, 6), torch.rand(2)),
        [
            "the layout of the latents 'latents' [2, 6, 4, 6] is not known",
            "with the usual 'b channel h w' a view cuts across channel*h*w (test_bad_input.py",
            'options={"axes": {"latents": "b c h w"}}',
        ],
    ),
    "no latents": (
        torch.nn.Linear(4, 4),
        (torch.randn(2, 4),),
        ["found no latents", "(2, 4)", "b c t h w"],
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_model_that_is_not_understood_is_refused(case: str) -> None:
    model, inputs, words = UNSUPPORTED[case]
    with torch.no_grad():
        messages = [
            refused(UnsupportedModelError, lambda: compiled_pab(model)(*inputs)),
            refused(UnsupportedModelError, lambda: pab_compile.explain(model, *inputs)),
        ]
    for message in messages:
        assert all(word in message for word in words), message


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_passing_through_warns_once_and_computes_right(case: str) -> None:
    model, inputs, words = UNSUPPORTED[case]
    compiled = compiled_pab(model, on_unsupported="passthrough")
    with torch.no_grad():
        with pytest.warns(UserWarning) as caught:
            first = compiled(*inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = [compiled(*inputs) for _ in range(2)]
        expected = model(*inputs)
    assert len(caught) == 1
    assert "compiled without reuse" in str(caught[0].message)
    assert words[0] in str(caught[0].message)
    assert all(torch.equal(out, expected) for out in (first, *again))


def call_latte(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model(draw_latents(), timestep=TABLES[4][:1], encoder_hidden_states=draw_prompt())


@pytest.mark.parametrize("block", ["transformer_blocks", "temporal_transformer_blocks"])
def test_a_single_block_of_a_model_is_refused_and_the_whole_model_recommended(block: str) -> None:
    model = tiny_latte(depth=1)
    getattr(model, block)[0].compile(backend="pab", options={"inner": "eager"})
    message = refused(UnsupportedModelError, lambda: call_latte(model))
    assert "compile the whole model, as" in message


def test_regional_compilation_of_equal_blocks_is_refused() -> None:
    model = tiny_latte(depth=2)
    model._repeated_blocks = ["BasicTransformerBlock"]
    model.compile_repeated_blocks(backend="pab", options={"inner": "eager"})
    message = refused(UnsupportedModelError, lambda: call_latte(model))
    assert "compile the whole model, as" in message


def test_blocks_that_pass_for_models_never_share_what_they_cached() -> None:
    # Every layer takes latents, timestep and prompt, so each passes for a model of its own; one
    # compiled function serves them all.
    torch.manual_seed(0)
    layers = [SmallDiT(1).requires_grad_(False) for _ in range(2)]
    expected = copy.deepcopy(layers)
    for layer in layers:
        layer.compile(
            backend="pab",
            options={"inner": "eager", "ranges": {"spatial": 2}, "window": (0.0, 1.0)},
        )
    x, prompt = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 7, 4)
    timesteps = torch.linspace(1, 0.1, 6)
    own = [layer_alone(layer, x, prompt, timesteps) for layer in expected]
    together: list[list[torch.Tensor]] = [[], []]
    with torch.no_grad():
        for t in timesteps:
            for outputs, layer in zip(together, layers, strict=True):
                outputs.append(layer(x * t, t.expand(2), prompt))
    for outputs, alone in zip(together, own, strict=True):
        assert torch.equal(torch.stack(outputs), torch.stack(alone))


def layer_alone(
    layer: torch.nn.Module, x: torch.Tensor, prompt: torch.Tensor, timesteps: torch.Tensor
) -> list[torch.Tensor]:
    """What one compiled layer yields when no other runs beside it."""
    torch._dynamo.reset()
    alone = torch.compile(
        layer,
        backend="pab",
        options={"inner": "eager", "ranges": {"spatial": 2}, "window": (0.0, 1.0)},
    )
    with torch.no_grad(), pab_compile.generation():
        outputs = [alone(x * t, t.expand(2), prompt) for t in timesteps]
        assert pab_compile.stats(alone).reused["spatial"] > 0
    torch._dynamo.reset()
    return outputs


@pytest.mark.parametrize(
    "run",
    [
        lambda: pab_compile.generation(timesteps=[]),
        lambda: pab_compile.step(4, 4),
        lambda: pab_compile.step(-1, 4),
    ],
)
def test_explicit_control_that_makes_no_sense_is_refused(run: Callable[[], Any]) -> None:
    def enter() -> None:
        with run():
            pass

    refused(PabError, enter)


def test_statistics_of_a_model_that_has_not_run_are_refused(model: torch.nn.Module) -> None:
    message = refused(PabError, lambda: pab_compile.stats(tiny_latte(depth=1)))
    assert 'backend="pab"' in message


def test_stated_axes_that_do_not_fit_are_refused(model: torch.nn.Module) -> None:
    for axes, words in (
        ({"latent": "b c t h w"}, "did you mean 'latents'?"),
        ({"latents": "b c t h"}, "one distinct name per dimension"),
    ):
        with pytest.raises(PabError) as caught:
            call(compiled_pab(model, axes=axes))
        assert words in str(caught.value)
