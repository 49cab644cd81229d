"""Binding times, and which input is the clock."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
import torch
from torch.nn.functional import embedding, linear

import helpers.captured as models
from helpers.captured import (
    BATCH,
    CHANNELS,
    Captured,
    captured,
    captured_module,
    latents_of,
    tokens_of,
    values,
)
from helpers.golden import check_inline
from pab_compile.passes.errors import NoTimestepError, UnsupportedModelError
from pab_compile.passes.graph import ir
from pab_compile.passes.sites.binding import (
    STATED_PROMPT,
    Binding,
    bind,
    find_clock,
    step_inputs,
)


def clock_of(model: Captured, stated: Mapping[str, str] | None = None) -> str:
    return find_clock(model.graph, model.node("latents"), stated or {}).name


def bound(model: Captured, stated: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Binding time -> names of the nodes bound then."""
    latents = model.node("latents")
    clock = find_clock(model.graph, latents, stated or {})
    steps = step_inputs(model.graph, clock, stated or {})
    bind(model.graph, frozenset([latents]), steps)
    found: dict[str, list[str]] = {when.name: [] for when in Binding}
    for node in model.graph.nodes:
        found[ir.binding(node).name].append(node.name)
    return found


def scalar_model(names: str, embed: str = "sin sin") -> Captured:
    """A model of two scalar inputs of these names, each embedded by one of these ops."""
    first, second = names.split()
    how = dict(zip((first, second), embed.split(), strict=True))
    scope = {"run": _run, "how": how}
    source = f"lambda latents, {first}, {second}, w_in: run(latents, w_in, how, {first}=x1)"
    source = source.replace("=x1", f"={first}, {second}={second}")
    function: Callable[..., torch.Tensor] = eval(source, scope)
    return captured(function, **{first: values(BATCH), second: values(BATCH)})


def _run(
    latents: torch.Tensor, w_in: torch.Tensor, how: Mapping[str, str], **scalars: torch.Tensor
) -> torch.Tensor:
    x = tokens_of(latents, w_in)
    for name, scalar in scalars.items():
        value = torch.sin(scalar) if how[name] == "sin" else scalar * 2
        x = x + value[:, None, None]
    return latents_of(x)


def test_a_value_binds_as_late_as_the_latest_of_its_inputs() -> None:
    found = bound(captured(models.cross_attention))
    check_inline(
        "\n".join(
            f"{when}: {' '.join(n for n in names if n != 'output')}"
            for when, names in found.items()
        ),
        """\
        CONSTANT: w_in w_time w_q w_k w_v w_out
        PROMPT: prompt linear_3 linear_4
        STEP: timestep unsqueeze expand sin linear_1 unsqueeze_1
        LATENT: latents permute view linear add linear_2 attend linear_5 add_1 view_1 permute_1
        """,
    )


def noisy(
    latents: torch.Tensor, timestep: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor
) -> torch.Tensor:
    """Noise that is drawn at every call, and what is computed from it and a weight."""
    noise = torch.rand_like(w_out)
    x = tokens_of(latents, w_in) + torch.sin(timestep)[:, None, None]
    return latents_of(linear(x, noise * w_out))


def test_random_values_and_what_is_computed_from_them_bind_at_every_step() -> None:
    model = captured(noisy)
    found = bound(model)
    assert {"rand_like", "mul"} <= set(found["STEP"])
    assert found["CONSTANT"] == ["w_in", "w_out"]


def test_values_that_may_change_without_notice_bind_at_every_step() -> None:
    model = captured(models.cross_attention)
    ir.set_volatile(model.node("prompt"), True)
    assert "prompt" in bound(model)["STEP"]


def test_binding_twice_changes_nothing_the_second_time() -> None:
    model = captured(models.cross_attention)
    latents, clock = model.node("latents"), model.node("timestep")
    denoised = frozenset([latents])
    assert bind(model.graph, denoised, frozenset([clock])) == len(model.graph.nodes)
    assert bind(model.graph, denoised, frozenset([clock])) == 0


def test_a_stated_step_input_binds_with_the_clock() -> None:
    stated = {"prompt": "step"}
    same, late = (
        bound(captured(models.cross_attention)),
        bound(captured(models.cross_attention), stated),
    )
    assert "prompt" in same["PROMPT"]
    assert {"prompt", "timestep"} <= set(late["STEP"])
    assert late["PROMPT"] == []


@pytest.mark.parametrize("name", ["timestep", "t", "sigma", "sigmas", "time", "noise_level"])
def test_the_clock_is_the_scalar_that_sounds_like_time(name: str) -> None:
    assert clock_of(scalar_model(f"guidance {name}")) == name


def test_the_clock_needs_no_name_when_only_it_is_embedded() -> None:
    assert clock_of(scalar_model("foo bar", "none sin")) == "bar"


def test_a_name_counts_more_than_an_embedding() -> None:
    assert clock_of(scalar_model("guidance timestep", "sin none")) == "timestep"


def test_the_clock_may_index_a_table() -> None:
    def model(latents, when, w_in, w_table):
        return latents_of(tokens_of(latents, w_in) + embedding(when, w_table)[:, None])

    table = torch.nn.Parameter(values(10, CHANNELS))
    assert clock_of(captured(model, when=torch.zeros(BATCH, dtype=torch.int64), w_table=table)) == (
        "when"
    )


@pytest.mark.parametrize("shape", [(), (1,), (BATCH,), (BATCH, 1)])
def test_the_clock_is_a_scalar_or_one_number_per_row(shape: tuple[int, ...]) -> None:
    def model(latents, timestep, w_in):
        return latents_of(tokens_of(latents, w_in) + torch.sin(timestep).reshape(-1, 1, 1))

    assert clock_of(captured(model, timestep=values(*shape))) == "timestep"


def test_the_clock_may_be_one_number_per_row_and_frame_if_it_sounds_like_time() -> None:
    def model(latents, timestep, w_in):
        return latents_of(tokens_of(latents, w_in) + torch.sin(timestep).mean(1)[:, None, None])

    def unnamed(latents, foo, w_in):
        return model(latents, foo, w_in)

    def embedded_before(latents, timestep, w_in):
        return latents_of(tokens_of(latents, w_in) + timestep.mean(1)[:, None, None])

    assert clock_of(captured(model, timestep=values(BATCH, 3))) == "timestep"
    with pytest.raises(UnsupportedModelError, match="No timestep was found"):
        clock_of(captured(embedded_before, timestep=values(BATCH, 3)))
    with pytest.raises(UnsupportedModelError, match="No timestep was found"):
        clock_of(captured(unnamed, foo=values(BATCH, 3)))


def test_of_several_that_sound_like_time_the_timestep_is_the_clock_and_all_change_with_it() -> None:
    model = scalar_model("r_timestep timestep")
    assert clock_of(model) == "timestep"
    assert {"timestep", "r_timestep"} <= set(bound(model)["STEP"])
    for word in STATED_PROMPT:
        assert "r_timestep" in bound(model, {"r_timestep": word})["PROMPT"]
    assert "guidance" in bound(scalar_model("guidance timestep"))["PROMPT"]


def test_with_a_timestep_per_token_another_per_row_changes_with_it() -> None:
    def model(latents, timestep, audio_timestep, text_time, w_in):
        x = tokens_of(latents, w_in) + torch.sin(timestep).mean(1)[:, None, None]
        x = x + torch.sin(audio_timestep)[:, None, None] + text_time.mean(1)[:, None, None]
        return latents_of(x)

    per_row, other = values(BATCH), values(BATCH, 4)
    found = bound(
        captured(model, timestep=values(BATCH, 3), audio_timestep=per_row, text_time=other)
    )
    assert {"timestep", "audio_timestep"} <= set(found["STEP"])
    assert "text_time" in found["PROMPT"]


def test_two_scalars_that_look_alike_are_ambiguous() -> None:
    model = scalar_model("foo bar")
    with pytest.raises(UnsupportedModelError) as caught:
        clock_of(model)
    assert "ambiguous" in str(caught.value)
    assert "'foo', 'bar'" in str(caught.value)
    assert '{"axes": {"<input>": "step"}}' in str(caught.value)


@pytest.mark.parametrize("stated", [{"bar": "step"}, {"foo": "prompt"}, {"foo": "held"}])
def test_stating_one_of_them_settles_it(stated: dict[str, str]) -> None:
    assert clock_of(scalar_model("foo bar"), stated) == "bar"


def test_an_input_stated_to_step_is_the_clock_only_if_no_other_is_certain() -> None:
    for name in ("timestep", "t"):
        model = scalar_model(f"{name} bar")
        assert clock_of(model, {"bar": "step"}) == name
        assert {name, "bar"} <= set(bound(model, {"bar": "step"})["STEP"])
        assert clock_of(model, {"bar": "step", name: "step"}) == name
        assert clock_of(model, {"bar": "step", name: "prompt"}) == "bar"
    assert clock_of(scalar_model("time bar", "none sin"), {"bar": "step"}) == "bar"
    assert clock_of(scalar_model("time t"), {"t": "step"}) == "t"


def test_two_stated_clocks_are_ambiguous() -> None:
    with pytest.raises(UnsupportedModelError, match="ambiguous"):
        clock_of(scalar_model("foo bar"), {"foo": "step", "bar": "step"})


def test_of_two_inputs_that_sound_like_time_the_embedded_one_is_the_clock() -> None:
    assert clock_of(scalar_model("time t", "none sin")) == "t"
    with pytest.raises(UnsupportedModelError, match="ambiguous"):
        clock_of(scalar_model("time t", "sin sin"))


def test_the_plain_name_is_the_clock_and_a_second_timestep_only_binds_with_it() -> None:
    model = scalar_model("timestep_r timestep")
    assert clock_of(model) == "timestep"
    assert {"timestep", "timestep_r"} <= set(bound(model)["STEP"])
    stated = bound(model, {"timestep_r": "prompt"})
    assert "timestep_r" in stated["PROMPT"]


def test_of_two_times_the_clock_is_the_one_named_after_the_latents() -> None:
    model = scalar_model("other_time latents_time")
    assert clock_of(model) == "latents_time"
    assert {"other_time", "latents_time"} <= set(bound(model)["STEP"])
    with pytest.raises(UnsupportedModelError, match="ambiguous"):
        clock_of(scalar_model("one_time other_time"))


def test_a_model_of_latents_alone_is_not_asked_to_state_its_clock() -> None:
    with pytest.raises(UnsupportedModelError, match="no input besides the latents") as caught:
        clock_of(captured(lambda latents, w_in: latents_of(tokens_of(latents, w_in))))
    assert "options=" not in str(caught.value)


def test_without_a_clock_the_error_lists_what_was_seen_and_speaks_of_single_blocks() -> None:
    def block(latents, prompt, w_in):
        return latents_of(tokens_of(latents, w_in) + linear(prompt, w_in).mean(1, keepdim=True))

    with pytest.raises(UnsupportedModelError) as caught:
        clock_of(captured(block))
    message = str(caught.value)
    assert "No timestep was found" in message
    assert re.search(r"latents 'latents': prompt\[2, 7, 4\]", message)
    assert "compile the whole model" in message and len(message) < 400
    assert '{"axes": {"<input>": "step"}}' in message


class OfAList(torch.nn.Module):
    """A model of a list of latents ``[c, tokens]``, with a timestep per token."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(CHANNELS, CHANNELS)

    def forward(self, latents: list[torch.Tensor], timestep: torch.Tensor) -> list[torch.Tensor]:
        x = self.project(torch.stack(latents).mT)
        return list(x * torch.sin(timestep[: len(latents), :, None]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_timestep_per_token_of_a_list_has_a_row_per_entry(dtype: torch.dtype) -> None:
    module = OfAList().to(dtype).requires_grad_(False)
    given = [torch.zeros(CHANNELS, 6, dtype=dtype) for _ in range(2)]
    for rows, is_one in ((2, True), (3, False)):
        model = captured_module(module, latents=given, timestep=torch.zeros(rows, 6, dtype=dtype))
        first = next(n for n in ir.placeholders(model.graph) if ir.source(n) == "latents[0]")
        if is_one:
            assert ir.source(find_clock(model.graph, first, {})) == "timestep"
            continue
        with pytest.raises(NoTimestepError, match="No timestep was found"):
            find_clock(model.graph, first, {})
