"""Models whose inputs change at every step give what the rule gives, learned or stated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import pab_compile
from dits.build import Denoising, build
from dits.catalogue import CATALOGUE
from dits.oracle import Oracle
from helpers.latte import assert_different, assert_same
from helpers.stepping import RULE, Stepping, SteppingDit, SteppingOracle

DTYPES = [torch.float32, torch.bfloat16]
BOTH = {"strength": "step", "residuals": "step"}


def fading(**changes: Any) -> Stepping:
    """Strength and residuals change at every step."""
    return Stepping(**{"residual": lambda step, call: step, **changes})


def compiled(model: SteppingDit, **options: Any) -> Callable[..., torch.Tensor]:
    given = {"inner": "eager", **RULE.options(), **options}
    return torch.compile(model, backend="pab", options=given)


def call_of(model: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda step, number, **inputs: model(**inputs)


def learned(step: int, call: int) -> str:
    """The lane of a call if inputs step: the first step is one of its own, as nothing is known."""
    return f"{call}, step 0" if step == 0 else f"{call}"


def check(loop: Stepping, model: SteppingDit, actual: Any, lane: Callable[[int, int], str]) -> Any:
    """A compiled model gives what the oracle gives, which is far from the eager model."""
    oracle = SteppingOracle(model, lane)
    expected, eager = loop.run(oracle), loop.run(call_of(model))
    tolerance = 1e-5 if loop.dtype == torch.float32 else 0.0
    if any(oracle.reused().values()):
        assert_different(expected, eager)
    assert_same(loop.run(call_of(actual)), expected, tolerance)
    stats = pab_compile.stats(actual)
    assert {k: n for k, n in stats.reused.items() if n} == {
        k: n for k, n in oracle.reused().items() if n
    }
    return stats


@pytest.mark.sample("torch.bfloat16")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_that_change_at_every_step_are_learned(dtype: torch.dtype) -> None:
    model, loop = SteppingDit(dtype), fading(dtype=dtype)
    actual = compiled(model)
    for _ in range(2):
        stats = check(loop, model, actual, learned)
        assert stats.lanes == 1
        (note,) = stats.notes
        assert note.startswith("'residuals', 'strength' changed from step to step")
        assert '{"residuals": "step", "strength": "step"}' in note


@pytest.mark.sample("True-torch.float32")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_dict", [False, True])
def test_a_list_or_a_dict_is_stated_by_its_name(is_dict: bool, dtype: torch.dtype) -> None:
    model, loop = SteppingDit(dtype), fading(is_dict=is_dict, dtype=dtype)
    stats = check(loop, model, compiled(model, axes=BOTH), lambda step, call: "")
    assert (stats.lanes, stats.notes) == (1, ())


def test_an_entry_is_stated_by_its_full_name() -> None:
    model, loop = SteppingDit(), fading()
    entries = {f"residuals[{i}]": "step" for i in range(3)} | {"strength": "step"}
    stats = check(loop, model, compiled(model, axes=entries), lambda step, call: "")
    assert (stats.lanes, stats.notes) == (1, ())


def test_graphs_of_a_broken_forward_learn_together() -> None:
    model, loop = SteppingDit(breaks=True), fading()
    actual = compiled(model, axes={"hidden_states": "b s c"})
    for _ in range(2):
        assert check(loop, model, actual, learned).lanes == 1


@pytest.mark.long
def test_a_name_that_no_graph_of_a_broken_forward_has_is_an_error() -> None:
    actual = compiled(SteppingDit(breaks=True), axes={"residual": "step"})
    with pytest.raises(pab_compile.PabError, match="did you mean 'residuals'"):
        fading().run(call_of(actual))


def test_what_is_learned_keeps_no_values_of_a_step() -> None:
    model = SteppingDit()
    held = []
    for axes in ({"residuals": "prompt"}, BOTH):
        torch._dynamo.reset()
        actual = compiled(model, axes=axes)
        fading(residual=lambda step, call: 0).run(call_of(actual))
        held.append(pab_compile.stats(actual).held_bytes)
    assert held[0] > held[1], "the residuals are projected once if they are prompts"


@pytest.mark.sample("torch.float32")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance_in_two_calls_keeps_two_lanes(dtype: torch.dtype) -> None:
    model = SteppingDit(dtype)
    loop = fading(texts=lambda step: (1, 2), dtype=dtype)
    assert check(loop, model, compiled(model), learned).lanes == 2


@pytest.mark.sample("torch.bfloat16")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_guidance_told_apart_only_by_what_changes_reuses_nothing(dtype: torch.dtype) -> None:
    model = SteppingDit(dtype)
    loop = Stepping(
        texts=lambda step: (1, 1), strength=lambda step, call: call - step / 20, dtype=dtype
    )
    stats = check(loop, model, compiled(model), lambda step, call: f"{step} {call}")
    assert not any(stats.reused.values())
    assert any("only 'strength' distinguished two calls" in note for note in stats.notes)


@pytest.mark.sample("torch.float32")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prompt_that_changes_at_every_step_is_never_reused(dtype: torch.dtype) -> None:
    model = SteppingDit(dtype)
    loop = fading(texts=lambda step: (1 + step,), dtype=dtype)
    stats = check(loop, model, compiled(model), lambda step, call: f"{step}")
    assert not any(stats.reused.values())
    (note,) = stats.notes
    assert "'encoder_hidden_states' changed at every step and may be a prompt" in note


def test_a_prompt_that_changes_half_way_is_another_lane() -> None:
    model, loop = SteppingDit(), fading(texts=lambda step: (1 + step // 5,))
    stats = check(loop, model, compiled(model), lambda step, call: learned(step, step // 5))
    assert stats.lanes == 2


@pytest.mark.sample("True")
@pytest.mark.parametrize("text_changes", [False, True])
def test_a_lane_with_a_name_goes_on_and_keeps_nothing_of_another_prompt(
    text_changes: bool,
) -> None:
    model = SteppingDit()
    loop = fading(texts=lambda step: (1 + text_changes * (step // 5),))
    actual = compiled(model)

    def named(step: int, number: int, **inputs: Any) -> torch.Tensor:
        with pab_compile.step(step, len(loop.table), lane="a"):
            return actual(**inputs)

    oracle = SteppingOracle(model, lambda step, call: learned(step, text_changes * (step // 5)))
    assert_same(loop.run(named), loop.run(oracle))
    stats = pab_compile.stats(actual)
    assert stats.lanes == 1
    assert "changed from step to step" in stats.notes[0]
    assert ["changed within the lane 'a'" in note for note in stats.notes[1:]] == (
        [True] * text_changes
    )


@pytest.mark.parametrize(
    ("name", "hint"), [("residual", "'residuals'"), ("strenght", "'strength'")]
)
def test_a_name_that_no_input_has_is_an_error(name: str, hint: str) -> None:
    actual = compiled(SteppingDit(), axes={name: "step"})
    with pytest.raises(pab_compile.PabError, match=f"did you mean {hint}.*inputs: .*residuals"):
        fading().run(call_of(actual))


class _Controlled(Denoising):
    """A loop of Flux beside a control model, whose residuals are new at every step."""

    def at(self, step: int) -> dict[str, Any]:
        given = super().at(step)
        batch, tokens, _ = given["hidden_states"].shape
        dtype, generator = given["hidden_states"].dtype, torch.Generator().manual_seed(step)
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        draw = lambda: torch.randn(batch, tokens, 32, generator=generator).to(dtype)  # noqa: E731
        return given | {name: [draw(), draw()] for name in names}


@pytest.mark.long
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residuals_of_a_control_model(dtype: torch.dtype) -> None:
    flux = CATALOGUE["flux"]
    dit = replace(
        flux, dtype=dtype, config={**flux.config, "num_layers": 1, "num_single_layers": 1}
    )
    model, loop = build(dit), _Controlled(dit, 7, batch=1, height=2, dtype=dtype)
    # The window begins after the third step, so that learned and stated are the same.
    options = {"ranges": {"joint": 2}, "window": (0.3, 1.0), "inner": "eager"}
    axes = {f"controlnet_{name}samples": "step" for name in ("block_", "single_block_")}
    for stated, notes in (({}, 1), (axes, 0)):
        torch._dynamo.reset()
        actual = torch.compile(model, backend="pab", options={**options, "axes": stated})
        oracle = Oracle(model, dit, {"joint": 2}, (0.3, 1.0))
        with torch.no_grad():
            expected = torch.stack([first for first, *_ in oracle.run(loop)])
            oracle.remove()
            assert_different(loop.predictions(model), expected)
            assert_same(loop.predictions(actual), expected)
        stats = pab_compile.stats(actual)
        assert (stats.lanes, len(stats.notes)) == (1, notes)
        assert stats.reused["joint"] == oracle.reused["joint"]
