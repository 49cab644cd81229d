"""``cut="output"``: whole outputs are reused, whatever the model is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from helpers.any_denoisers import ANY, PARTLY, Broken, Denoiser
from helpers.latte import (
    Loop,
    ModelCall,
    Moment,
    assert_different,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from pab_compile import OptionError, UnsupportedModelError

NUM_STEPS, RANGE = 10, 3
OPTIONS = {"ranges": "linear3", "cut": "output"}
pytestmark = pytest.mark.filterwarnings("ignore:.*")


class Lines:
    """A model that is called at every third step, and otherwise follows its last two outputs."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._call: ModelCall = calls_of(model)
        self._computed: dict[str, list[tuple[int, torch.Tensor]]] = {}

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor, moment: Moment
    ) -> torch.Tensor:
        known = self._computed.setdefault(moment.lane, [])
        if moment.step % RANGE == 0 or moment.step < 0.1 * NUM_STEPS:
            output = self._call(latents, timestep, prompt, moment)
            known.append((moment.step, output))
            return output
        if len(known) == 1:
            return known[0][1]
        (before, first), (last, second) = known[-2:]
        return first + (second - first) * (moment.step - before) / (last - before)


@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in ANY.items()])
def test_any_denoiser_follows_its_own_outputs(build: Any) -> None:
    torch.manual_seed(0)
    model = build().eval().requires_grad_(False)
    loop = {"timesteps": ddim_timesteps(NUM_STEPS)}
    expected = Loop(Lines(model), **loop).run()
    compiled = compiled_pab(model, **OPTIONS)
    first = Loop(calls_of(compiled), **loop).run()
    assert_same(first, expected)
    assert_different(Loop(calls_of(model), **loop).run(), expected)
    stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
    assert stats.computed_steps == {"output": 4}
    assert stats.reused["output"] * 4 == stats.computed["output"] * 6
    other = {**loop, "latents": draw_latents(7), "prompt": draw_prompt(8)}
    assert_same(Loop(calls_of(compiled), **other).run(), Loop(Lines(model), **other).run())


@pytest.mark.sample("experts")
@pytest.mark.parametrize("name", PARTLY)
def test_what_is_not_predicted_as_a_whole_is_right_where_it_is_computed(name: str) -> None:
    model = PARTLY[name]().eval().requires_grad_(False)
    timesteps = ddim_timesteps(NUM_STEPS)
    given = [(draw_latents(i), timesteps[i : i + 1], draw_prompt()) for i in range(NUM_STEPS)]
    compiled = compiled_pab(model, **OPTIONS)
    with torch.no_grad():
        eager = [model(*inputs, return_dict=False)[0] for inputs in given]
        actual = [compiled(*inputs, return_dict=False)[0] for inputs in given]
    for step, (ours, theirs) in enumerate(zip(actual, eager, strict=True)):
        if step % RANGE == 0:
            assert_same(ours, theirs)
        else:
            assert_different(ours, theirs)
    assert pab_compile.stats(compiled).computed_steps == {"output": 4}  # type: ignore[arg-type]


@pytest.mark.sample("broken")
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: tiny_latte(depth=1), id="latte"),
        pytest.param(lambda: Broken().eval().requires_grad_(False), id="broken"),
    ],
)
def test_every_prompt_has_outputs_of_its_own(model: Any) -> None:
    model = model()
    loop: dict[str, Any] = {"timesteps": ddim_timesteps(NUM_STEPS), "guidance": "two calls"}
    compiled = compiled_pab(model, **OPTIONS)
    assert_same(Loop(calls_of(compiled), **loop).run(), Loop(Lines(model), **loop).run())
    assert pab_compile.stats(compiled).lanes == 2  # type: ignore[arg-type]


def test_without_ranges_it_is_eager_bit_for_bit() -> None:
    model = Broken().eval().requires_grad_(False)
    loop = {"timesteps": ddim_timesteps(4)}
    compiled = compiled_pab(model, ranges={}, cut="output")
    assert torch.equal(Loop(calls_of(compiled), **loop).run(), Loop(calls_of(model), **loop).run())


class Counting(Denoiser):
    """It writes to a buffer at every call, and returns another one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *args: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        self.calls.add_(1)
        return super().forward(*args, **kwargs)


def test_what_is_written_is_written_at_every_step() -> None:
    model = Counting().eval().requires_grad_(False)
    compiled = compiled_pab(model, **OPTIONS)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    assert model.calls == NUM_STEPS
    assert pab_compile.stats(compiled).reused["output"] == 6  # type: ignore[arg-type]


class CountingUntraced(Counting):
    """It also gives a weight other memory, so its graph cannot be traced."""

    def forward(self, *args: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor]:
        self.last.weight.data = self.last.weight.data * 1
        return super().forward(*args, **kwargs)


def test_what_is_written_in_a_graph_that_cannot_be_traced_is_refused() -> None:
    model = CountingUntraced().eval().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match="writes to a buffer or an input"):
        Loop(calls_of(compiled_pab(model, **OPTIONS)), ddim_timesteps(NUM_STEPS)).run()


@pytest.mark.sample("graph breaks")
@pytest.mark.parametrize("name", ["graph breaks", "weights cast by hooks"])
def test_explain_says_that_the_whole_output_is_reused(name: str) -> None:
    inputs = (draw_latents(), torch.tensor([500]), draw_prompt())
    found = pab_compile.explain(ANY[name]().eval(), *inputs, options=OPTIONS)
    assert {site.kind for site in found.sites} == {"output"}
    assert (found.latents, found.clock, found.reuse_flops) == ("hidden_states", "timestep", 0)
    assert str(found).startswith("the whole output; latents 'hidden_states', clock 'timestep'")


@pytest.mark.parametrize("name", ["graph breaks", "autocast inside"])
def test_other_cuts_refuse_such_a_model_and_offer_this_one(name: str) -> None:
    model = ANY[name]().eval().requires_grad_(False)
    with pytest.raises(UnsupportedModelError, match='"cut": "output"'):
        Loop(calls_of(compiled_pab(model)), ddim_timesteps(3)).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": {"spatial": 2}}, "of the kind 'output' only"),
        ({"ranges": "pab246"}, "of the kind 'output' only"),
        ({"ranges": "linear3", "sequence_parallel": 2}, "2 ranks"),
        ({"ranges": "linear3", "batch_parallel": 2}, "2 ranks"),
    ],
)
def test_what_does_not_go_with_it_is_an_error(options: dict[str, Any], message: str) -> None:
    model = tiny_latte(depth=1)
    with pytest.raises(OptionError, match=message):
        compiled_pab(model, cut="output", **options)(draw_latents(), torch.tensor([5]))
