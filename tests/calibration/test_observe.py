"""Observe: the numbers of an eager run, from a graph with probes whose output stays the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel
from torch.utils._python_dispatch import TorchDispatchMode

import pab_compile
from helpers.latte import (
    Guidance,
    Loop,
    assert_same,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule, extrapolate
from pab_compile.calibration.observation import MAX_LAG
from pab_compile.calibration.observe import Observer, Probed
from pab_compile.errors import ObservationError
from pab_compile.plans.plan import COMPUTE
from pab_compile.runtime.generation import Place

pytestmark = pytest.mark.compiled_once
NUM_STEPS = 26
PATHS = {"spatial": "transformer_blocks", "temporal": "temporal_transformer_blocks"}


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


class Recorder(Oracle):
    """Eager, with every branch's output kept: (site's module, lane) -> one tensor per step."""

    def __init__(self, model: LatteTransformer3DModel, cut: str) -> None:
        super().__init__(model, Rule({}), cut)
        self.outputs: dict[tuple[str, str], list[torch.Tensor]] = {}

        self.results: dict[str, list[torch.Tensor]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = super().__call__(*args, **kwargs)
        self.results.setdefault(self._now.lane, []).append(result[0].double())
        return result

    def branch(self, name: str, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        result = super().branch(name, kind, compute)
        stack, _, rest = name.partition(".")
        key = (f"{PATHS[stack]}.{rest}", self._now.lane)
        self.outputs.setdefault(key, []).append(result.double())
        return result


@pytest.mark.sample("gated-two calls")
@pytest.mark.parametrize(("cut", "guidance"), [("attention", "none"), ("gated", "two calls")])
def test_the_numbers_are_those_of_an_eager_run(
    model: LatteTransformer3DModel, cut: str, guidance: Guidance
) -> None:
    table = ddim_timesteps(NUM_STEPS)
    recorder = Recorder(model, cut)
    eager = Loop(recorder, table, guidance=guidance).run()
    loop = Loop(calls_of(compiled_pab(model, cut=cut)), table, guidance=guidance)
    seen = pab_compile.observe(lambda: loop.run())
    assert torch.equal(torch.stack(loop.predictions), eager), "probes changed the output"
    lanes = ["cond"] if guidance == "none" else ["uncond", "cond"]
    assert [run.lane for run in seen.runs] == [str(i) for i in range(len(lanes))]
    assert [site.kind for site in seen.sites] == ["spatial", "cross", "mlp", "temporal", "mlp"]
    assert seen.timesteps == tuple(table.tolist())
    assert seen.cut == cut
    errors = {
        (order, distance): seen.relative_error(order, distance)
        for order in (0, 1, 2)
        for distance in range(1, 9)
    }
    for number, site in enumerate(seen.sites):
        for run, lane in enumerate(lanes):
            (path,) = (p for p, of in recorder.outputs if of == lane and site.module.startswith(p))
            x = torch.stack(recorder.outputs[path, lane])
            norms = x.flatten(1).norm(dim=1)
            at = (run, number)
            change = (x[1:] - x[:-1]).flatten(1)
            close(seen.difference()[at][1:], change.square().mean(1))
            close(seen.relative_norm()[at][1:], norms[1:] / norms[:-1])
            cosine = torch.cosine_similarity(x[1:].flatten(1), x[:-1].flatten(1))
            close(seen.cosine()[at][1:], cosine)
            for (order, distance), found in errors.items():
                steps = range(distance * (order + 1), NUM_STEPS)
                for step in list(steps)[:: max(1, len(steps) // 3)]:
                    used = [(step - distance * i, x[step - distance * i]) for i in (3, 2, 1)]
                    error = extrapolate(used[2 - order :], step) - x[step]
                    close(found[at][step], error.norm() / norms[step])
    for run, lane in enumerate(lanes):
        results = torch.stack(recorder.results[lane]).flatten(1)
        close(seen.outputs[run], results @ results.T / results.shape[1])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.long
def test_few_samples_estimate_what_all_elements_give(model: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(model)
    exact, rough = (
        pab_compile.observe(
            lambda: Loop(calls_of(compiled), ddim_timesteps(6)).run(), num_samples=number
        )
        for number in (10_000, 300)
    )
    assert not torch.equal(rough.difference(), exact.difference())
    ratio = (rough.difference() / exact.difference())[..., 1:]
    assert (ratio.log().abs() < 0.7).all()
    errors = (rough.relative_error(1, 1) / exact.relative_error(1, 1))[..., 2:]
    assert (errors.log().abs() < 0.35).all()


def test_the_plan_goes_on_afterwards_as_if_nothing_had_been(model: LatteTransformer3DModel) -> None:
    table, compiled = ddim_timesteps(8), compiled_pab(model)
    expected = Loop(Oracle(model), table).run()
    assert_same(Loop(calls_of(compiled), table).run(), expected)
    pab_compile.observe(lambda: Loop(calls_of(compiled), table).run())
    assert_same(Loop(calls_of(compiled), table).run(), expected)


def test_nothing_is_cached_meanwhile(model: LatteTransformer3DModel) -> None:
    compiled = compiled_pab(model)
    loop = Loop(calls_of(compiled), ddim_timesteps(6), by_value=True)  # of unknown length
    assert len(pab_compile.observe(loop.run).timesteps) == 6
    assert pab_compile.stats(compiled).peak_cache_bytes == 0  # type: ignore[arg-type]


def test_generations_are_told_apart_and_a_pause_of_a_lane_is_unknown(
    model: LatteTransformer3DModel,
) -> None:
    compiled = compiled_pab(model)

    def call() -> None:
        Loop(calls_of(compiled), ddim_timesteps(6), draw_latents(3), guidance="two calls").run()
        paused = Loop(calls_of(compiled), ddim_timesteps(6), guidance="two calls")
        for step in paused.steps():
            paused.guidance = "none" if step == 2 else "two calls"

    seen = pab_compile.observe(call)
    assert [(run.generation, run.lane) for run in seen.runs] == [
        (0, "0"),
        (0, "1"),
        (1, "0"),
        (1, "1"),
    ]
    unknown = seen.mean_square().isnan().any(1)
    assert [row.nonzero().flatten().tolist() for row in unknown] == [[], [], [3], []]
    assert seen.difference()[2, 0].isnan().nonzero().flatten().tolist() == [0, 3, 4]
    steps = torch.arange(6)
    for run in range(4):
        paused = (steps == 3) & (run == 2)
        assert torch.equal(seen.outputs[run].isnan(), paused | paused[:, None])


@pytest.mark.long
def test_what_is_kept_and_computed_is_that_of_the_options(model: LatteTransformer3DModel) -> None:
    def run(**options: Any) -> pab_compile.Observation:
        compiled = compiled_pab(model, cut="gated", **options)
        return pab_compile.observe(lambda: Loop(calls_of(compiled), ddim_timesteps(3)).run())

    single, merged, narrow = run(), run(coalesce=True), run(cache_dtype="bfloat16")
    assert [single.coalesce, merged.coalesce] == [False, True]
    assert single.kept_bytes == sum(site.cache_bytes for site in single.sites)
    assert merged.kept_bytes < single.kept_bytes
    assert narrow.kept_bytes == single.kept_bytes // 2
    assert merged.sites == single.sites
    inputs: list[Any] = []
    hook = model.register_forward_pre_hook(lambda *call: inputs.append(call[1:]), with_kwargs=True)
    Loop(calls_of(model), ddim_timesteps(1)).run()
    hook.remove()
    explained = pab_compile.explain(model, *inputs[0][0], **inputs[0][1])
    assert single.total_flops == explained.total_flops


def test_what_does_not_belong_together_is_refused(model: LatteTransformer3DModel) -> None:
    compiled, other = compiled_pab(model), compiled_pab(tiny_latte(depth=1, seed=5))

    def run(call: Any, num_steps: int = 3) -> None:
        Loop(calls_of(call), ddim_timesteps(num_steps)).run()

    with pytest.raises(ObservationError, match="no step of a model compiled"):
        pab_compile.observe(lambda: run(model))
    with pytest.raises(ObservationError, match=r"\[3, 4\] steps"):
        pab_compile.observe(lambda: (run(compiled), run(compiled, 4)))
    with pytest.raises(ObservationError, match="Several models ran"):
        pab_compile.observe(lambda: (run(compiled), run(other)))
    one = pab_compile.observe(lambda: (run(compiled), run(other)), model=compiled)  # type: ignore[arg-type]
    assert len(one.runs) == 1
    for wrong in (0, True, 2.0):
        with pytest.raises(ObservationError, match="num_samples"):
            pab_compile.observe(lambda: None, num_samples=wrong)  # type: ignore[arg-type]


def test_a_calibrated_plan_of_sums_keeps_and_computes_what_it_says(
    model: LatteTransformer3DModel, tmp_path: Path
) -> None:
    table = ddim_timesteps(10)
    observed = compiled_pab(model, cut="gated", coalesce=True)
    seen = pab_compile.observe(lambda: Loop(calls_of(observed), table).run())
    found = pab_compile.tune(seen, speedup=1.8, max_order=1)
    found.save(tmp_path / "plan.json")
    compiled = compiled_pab(model, plan=tmp_path / "plan.json")
    predictions = Loop(calls_of(compiled), table).run()
    stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
    assert stats.peak_cache_bytes == found.cache_bytes > 0
    assert sum(stats.computed.values()) == found.entries.count(COMPUTE) * len(seen.sites)
    plain = Loop(calls_of(model), table).run()
    assert 0 < (predictions - plain).norm() < 0.5 * plain.norm()


class NoSynchronisation(TorchDispatchMode):
    """Refuses what would wait for an accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero"), name
        return func(*args, **(kwargs or {}))


def test_recording_reads_nothing_from_the_device_and_holds_the_same_at_any_number_of_steps() -> (
    None
):
    class Here:
        trusted, timestep_now, step, notes = True, None, 0, ()

    class There:
        name = None

    lane, generation, observer = There(), Here(), Observer(16, None)
    place: Any = Place(generation, lane, None)  # type: ignore[arg-type]
    site: Any = None
    probed = Probed("graph", (site, site), 3, "gated", False, 0, 0)
    weight = torch.ones(1)
    with NoSynchronisation():
        for generation.step in (s for s in range(3 * MAX_LAG) if s != 60):
            observer.record(probed, place, [weight], [torch.randn(n) for n in (16, 9, 4)])
    (track,) = observer._runs[0].tracks.values()
    assert track.ring is not None
    assert track.ring.shape == (MAX_LAG + 1, 2, 16)
    missing = track.products[3 * MAX_LAG - 1].isnan().nonzero().tolist()
    assert missing == [[site, 3 * MAX_LAG - 1 - 60] for site in range(2)]
    assert len(track.outputs) == 3 * MAX_LAG - 1
    gone = weakref.ref(lane)
    del lane, place
    assert gone() is None, "an observer keeps a lane, and all that it caches, alive"
    with NoSynchronisation():
        observer._runs[0].finish()
    assert (track.ring, track.outputs) == (None, {})
    assert track.output_products(3 * MAX_LAG)[0].isnan().nonzero().tolist() == [[60]]
