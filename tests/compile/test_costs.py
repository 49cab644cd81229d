"""What a step costs: no synchronisation, no recompilation, no tensor that no later step reuses."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import (
    Guidance,
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.oracle import Oracle, Rule

pytestmark = pytest.mark.compiled_once
NUM_STEPS = 12
MIXED = Rule({"spatial": 2, "temporal": 1, "cross": 4, "mlp": 3})
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


@pytest.fixture(autouse=True)
def only_what_is_new() -> Iterator[None]:
    """The collector leaves alone what other tests left: to look at it all takes seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Reads:
    """Counts everything that takes a tensor's value to the host."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for name in READS:
            monkeypatch.setattr(torch.Tensor, name, self._counted(getattr(torch.Tensor, name)))
        monkeypatch.setattr(torch, "equal", self._counted(torch.equal))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return function(*args, **kwargs)

        return counted


def scalar_reads(profile: torch.profiler.profile) -> int:
    names = ("aten::_local_scalar_dense", "aten::item", "aten::equal", "aten::is_nonzero")
    return sum(event.count for event in profile.key_averages() if event.key in names)


@pytest.mark.sample("none-True-True", "two calls-False-False")
@pytest.mark.parametrize(("by_value", "expected"), [(False, False), (True, True)])
@pytest.mark.parametrize("guidance", ["none", "two calls"])
def test_steps_of_a_table_read_nothing_from_the_device(
    model: LatteTransformer3DModel,
    monkeypatch: pytest.MonkeyPatch,
    guidance: Guidance,
    by_value: bool,
    expected: bool,
) -> None:
    compiled = compiled_pab(model)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance).run()
    loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance, by_value=by_value)
    steps = loop.steps()
    next(steps)
    reads = Reads(monkeypatch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in steps:
            pass
    assert (scalar_reads(profile) + reads.count > 0) == expected
    assert pab_compile.stats(compiled).reused["spatial"] > 0  # type: ignore[arg-type]


@pytest.mark.sample("True")
@pytest.mark.parametrize("by_value", [False, True])
def test_nothing_is_recompiled_after_the_first_generation(
    model: LatteTransformer3DModel, by_value: bool
) -> None:
    compiled = compiled_pab(model)
    guidance: Guidance = "two calls"
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance, by_value=by_value).run()
    pieces = pab_compile.stats(compiled).num_pieces  # type: ignore[arg-type]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, num_steps in ((2, NUM_STEPS), (3, 20)):
            Loop(
                calls_of(compiled),
                ddim_timesteps(num_steps),
                draw_latents(seed),
                draw_prompt(seed),
                guidance=guidance,
                by_value=by_value,
            ).run()
    assert pab_compile.stats(compiled).num_pieces == pieces  # type: ignore[arg-type]


@pytest.mark.long
def test_a_graph_with_dynamic_sizes_is_compiled_for_one_size_and_for_all_others(
    model: LatteTransformer3DModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pab_compile import backend

    compilations = Counter[tuple[Any, ...]]()
    original = backend.compile_program

    def counted(request: Any, settings: Any) -> Any:
        tensors = [arg for arg in request.args if isinstance(arg, torch.Tensor)]
        compilations[tuple(tuple(tensor.shape) for tensor in tensors)] += 1
        return original(request, settings)

    monkeypatch.setattr(backend, "compile_program", counted)
    torch._dynamo.reset()
    compiled = compiled_pab(model)
    for batch in (1, 2, 3, 2, 3):
        prompt = draw_prompt(batch=batch)
        Loop(calls_of(compiled), ddim_timesteps(6), draw_latents(batch=batch), prompt).run()
    assert list(compilations.values()) == [1, 1]


@pytest.mark.sample("two calls-rule3")
@pytest.mark.parametrize(
    ("guidance", "rule"),
    [
        ("none", Rule()),
        ("none", Rule({"spatial": 3, "temporal": 4, "cross": 5, "mlp": 2}, (100, 800), predict=1)),
        ("none", Rule({"spatial": 3, "temporal": 4, "cross": 2, "mlp": 2}, (100, 950), predict=2)),
        ("two calls", MIXED),
    ],
)
def test_a_tensor_is_held_from_its_step_to_its_last_reuse(
    model: LatteTransformer3DModel, rule: Rule, guidance: Guidance
) -> None:
    timesteps = ddim_timesteps(NUM_STEPS)
    oracle = Oracle(model, rule)
    Loop(oracle, timesteps, guidance=guidance).run()
    expected = oracle.held_bytes()
    compiled = compiled_pab(model, **rule.options())
    Loop(calls_of(compiled), timesteps, guidance=guidance).run()
    loop = Loop(calls_of(compiled), timesteps, guidance=guidance)
    pab_compile.reset()
    before = sum(living_storages().values())
    for step in loop.steps():
        own = len(loop.predictions) * loop.latents.nbytes  # the latents replace those of before
        new = sum(living_storages().values()) - before - own
        beside = pab_compile.stats(compiled).held_bytes  # type: ignore[arg-type]
        # The input of the last call is held, to tell a repeated call from another video.
        slack = new - expected[step] - beside - loop.latents.nbytes
        if step < NUM_STEPS - 1:
            assert abs(slack) < 2048, f"step {step}: {slack} bytes beside what the plan needs"
    stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
    assert stats.peak_cache_bytes == max(expected.values())


def test_a_step_frees_what_a_piece_returns_at_its_last_use(model: LatteTransformer3DModel) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    living: list[set[int]] = []
    last_read: dict[int, int] = {}

    def inner(graph_module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        def run(*args: torch.Tensor) -> Any:
            known = {n: tensor for n, ref in enumerate(made) if (tensor := ref()) is not None}
            read = [n for n, tensor in known.items() if any(tensor is arg for arg in args)]
            last_read.update(dict.fromkeys(read, len(living)))
            living.append({*known})
            results = graph_module(*args)
            made.extend(map(weakref.ref, results))
            return results

        return run

    steps = Loop(calls_of(compiled_pab(model, inner=inner)), ddim_timesteps(NUM_STEPS)).steps()
    for _ in range(NUM_STEPS - 1):
        next(steps)
    for each in (made, living, last_read):  # what the last step returns is not kept for another one
        each.clear()
    next(steps)
    too_long = [{n for n in now if last_read.get(n, 0) < call} for call, now in enumerate(living)]
    assert len(living) > 3
    assert not any(too_long), too_long


@pytest.mark.sample("two calls")
@pytest.mark.parametrize("guidance", ["none", "two calls"])
def test_nothing_is_left_after_a_generation(
    model: LatteTransformer3DModel, guidance: Guidance
) -> None:
    compiled = compiled_pab(model)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance).run()
    pab_compile.reset()
    before = living_storages()
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), guidance=guidance).run()
    left = Counter(living_storages().values()) - Counter(before.values())
    table = NUM_STEPS * 8
    assert sum(left.elements()) <= table, f"tensors left, by their bytes: {left}"


class Fuse:
    """An inner compiler whose pieces fail while it is lit."""

    is_lit = False

    def __init__(self, graph_module: torch.fx.GraphModule, _: Any) -> None:
        self._graph_module = graph_module

    def __call__(self, *args: torch.Tensor) -> Any:
        if self.is_lit:
            raise MemoryError
        return self._graph_module(*args)


@pytest.mark.sample("exception-True")
@pytest.mark.parametrize("by_value", [False, True])
@pytest.mark.parametrize("end", ["reset", "scope", "exception"])
def test_nothing_is_left_of_a_generation_that_stops_half_way(
    model: LatteTransformer3DModel, monkeypatch: pytest.MonkeyPatch, end: str, by_value: bool
) -> None:
    monkeypatch.setattr(Fuse, "is_lit", False)
    compiled = compiled_pab(model, inner=Fuse)
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    pab_compile.reset()
    before = living_storages()

    def run_half() -> None:
        loop = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS), by_value=by_value)
        for step in loop.steps():
            if step == NUM_STEPS // 2:
                assert sum(living_storages().values()) > sum(before.values()) + 20_000
                break
        if end == "exception":
            monkeypatch.setattr(Fuse, "is_lit", True)
            with pytest.raises(MemoryError):
                loop.run()

    if end == "scope":
        with pab_compile.generation():
            run_half()
    else:
        run_half()
    if end == "reset":
        pab_compile.reset()
    left = Counter(living_storages().values()) - Counter(before.values())
    assert sum(left.elements()) < 2048, f"tensors left, by their bytes: {left}"


def living_storages() -> dict[int, int]:
    """Address -> bytes of all memory that tensors hold which were made in this test and live."""
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in tensors
        if t.device.type == "cpu"
    }


@pytest.mark.sample("two calls")
@pytest.mark.parametrize("guidance", ["none", "batched", "two calls"])
def test_statistics_are_the_oracles(model: LatteTransformer3DModel, guidance: Guidance) -> None:
    rule, timesteps = MIXED, ddim_timesteps(20)
    compiled = compiled_pab(model, **rule.options())
    for seed in (1, 2):
        oracle = Oracle(model, rule)
        Loop(oracle, timesteps, draw_latents(seed), guidance=guidance).run()
        Loop(calls_of(compiled), timesteps, draw_latents(seed), guidance=guidance).run()
        stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
        assert stats.kinds == ("spatial", "temporal", "cross", "mlp")
        assert stats.computed == oracle.computed()
        assert stats.reused == oracle.reused()
        assert stats.steps == 20
        assert stats.lanes == (2 if guidance == "two calls" else 1)
        assert stats.calls == 20 * stats.lanes
        assert list(stats.patterns) == oracle_patterns(oracle)
        assert stats.peak_cache_bytes == max(oracle.held_bytes().values())
        assert stats.num_pieces > 0
        assert stats.compile_seconds >= 0
        assert 0 < stats.seconds_per_step < 60
        assert stats.notes == ()


def oracle_patterns(oracle: Oracle) -> list[str]:
    calls: dict[tuple[int, str], dict[str, str]] = {}
    for event in oracle.events:
        letters = calls.setdefault((event.step, event.lane), {})
        letters[event.kind] = "-" if event.reused else "C"
    kinds = ("spatial", "temporal", "cross", "mlp")
    return ["".join(letters[kind] for kind in kinds) for letters in calls.values()]


def calls_of_a_step(depth: int) -> int:
    """Python functions of the library that the sixth step calls, which repeats all blocks."""
    compiled = compiled_pab(tiny_latte(depth=depth), ranges="linear3", window=(0.0, 1.0))
    Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
    steps = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).steps()
    for _ in range(5):
        next(steps)
    count, library = 0, str(Path(pab_compile.__file__).parent)

    def note(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(library)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        next(steps)
    finally:
        sys.setprofile(before)
    assert pab_compile.stats(compiled).patterns[-1] == "----"  # type: ignore[arg-type]
    return count


def test_a_step_that_reuses_calls_no_python_per_block_or_weight() -> None:
    shallow, deep = calls_of_a_step(1), calls_of_a_step(2)
    assert 0 < deep <= shallow + 1
