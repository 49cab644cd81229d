"""Coalesced sites over whole generations: what the single sites give, from fewer cached tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from dits.blocks import BlockOracle
from dits.build import Denoising, build, run
from dits.catalogue import CATALOGUE
from examples import tiny
from helpers.latte import (
    Guidance,
    Loop,
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
from helpers.oracle import Oracle, Rule
from pab_compile.plans.plan import COMPUTE
from pab_compile.plans.plan_file import plan_to_json
from pab_compile.runtime.last_runs import last_generation

ALL = {"spatial": 2, "temporal": 2, "cross": 2, "mlp": 2}
RULES = [Rule(ALL, (0.0, 1.0), order) for order in (0, 2)]
NUM_STEPS = 9


@pytest.mark.parametrize(("rule", "guidance"), [(RULES[0], "two calls"), (RULES[1], "batched")])
def test_a_generation_equals_the_oracle_and_caches_one_tensor(
    rule: Rule, guidance: Guidance
) -> None:
    model, table = tiny_latte(depth=1), ddim_timesteps(NUM_STEPS)
    oracle = Oracle(model, rule, "gated")
    expected = Loop(oracle, table, guidance=guidance).run()
    compiled = compiled_pab(model, cut="gated", coalesce=True, **rule.options())
    for seed in (9, 1):
        loop = Loop(calls_of(compiled), table, draw_latents(seed), guidance=guidance)
        if seed == 9:  # broken off
            next(loop.steps())
            pab_compile.reset()
    assert_same(loop.run(), expected)
    stats = pab_compile.stats(compiled)  # type: ignore[arg-type]
    assert stats.reused == oracle.reused()
    assert stats.computed == oracle.computed()
    outputs = (rule.predict + 1) * (2 if guidance == "two calls" else 1)  # type: ignore[operator]
    assert stats.peak_cache_bytes == outputs * oracle.events[0].num_bytes


@pytest.mark.long
def test_the_single_sites_of_a_plan_stay_beside_the_merged_ones() -> None:
    rule = Rule(
        {"spatial": 2, "temporal": 2, "cross": 3, "mlp": 2},
        (0.0, 1.0),
        {"mlp": 1, "cross": 1, "temporal": 1, "spatial": 1},
    )
    model, table = tiny_latte(depth=1), ddim_timesteps(NUM_STEPS)
    compiled = compiled_pab(model, cut="gated", coalesce=True, **rule.options())
    expected = Loop(Oracle(model, rule, "gated"), table).run()
    assert_same(Loop(calls_of(compiled), table).run(), expected)


@pytest.mark.long
def test_open_sora_equals_its_oracle() -> None:
    model, table, rule = tiny.build("open-sora"), ddim_timesteps(6), Rule(ALL, (0.0, 1.0), 1)
    expected = Loop(tiny.Oracle("open-sora", model, rule, "gated"), table).run()
    compiled = compiled_pab(model, cut="gated", coalesce=True, **rule.options())
    assert_same(Loop(tiny.calls("open-sora", compiled), table).run(), expected)


@pytest.mark.long
# Sites that are merged, and the sums that they cache: one per stream that is read afterwards, which
# CogVideoX's prompt is not.
@pytest.mark.parametrize(
    ("name", "cut", "merged"),
    [
        ("cogvideox", "gated", [(4, 1)]),
        ("wan", "branch", [(6, 1)]),
        ("flux", "gated", [(6, 1)]),
        ("flux", "branch", [(8, 1)]),
    ],
)
def test_two_lanes_of_other_models_equal_their_oracle(
    name: str, cut: str, merged: list[tuple[int, int]]
) -> None:
    dit = CATALOGUE[name]
    model, loop, num_steps = build(dit), Denoising(dit, 6), 6
    rule = Rule(dict.fromkeys(("full", "joint", "cross", "mlp"), 2), (0.0, 1.0), 1)
    null = {"encoder_hidden_states": dit.inputs(seed=2)["encoder_hidden_states"]}
    lanes: dict[str, dict[str, Any]] = {"uncond": null, "cond": {}}

    def generate(call: Any, steps: int = num_steps) -> torch.Tensor:
        """All outputs, both lanes of a step one after the other."""
        return torch.stack(
            [
                call(Moment(step, num_steps, 0.0, lane), **{**loop.at(step), **others})
                for step in range(steps)
                for lane, others in lanes.items()
            ]
        )

    expected = generate(BlockOracle(model, rule, cut))
    assert_different(expected, generate(lambda _, **inputs: run(model, **inputs)[0]))
    options = {"cut": cut, "coalesce": True, **rule.options(), **dit.options}
    compiled = compiled_pab(model, **options)
    for steps in (3, num_steps):  # broken off, and whole
        pab_compile.reset()
        actual = generate(lambda _, **inputs: run(compiled, **inputs)[0], steps)
    assert_same(actual, expected)
    found = pab_compile.explain(compiled)
    lines = [note for note in found.notes if note.startswith("coalesced")]
    numbers = [re.match(r"coalesced (\d+) sites, .* cache (\d+) tensor", line) for line in lines]
    assert [tuple(map(int, n.groups())) for n in numbers if n] == merged


@dataclass(frozen=True)
class Deep:
    """A model of any depth, and what it should cache.

    Attributes:
        compile: number of blocks -> the compiled model, and a generation of seven steps of it.
        depths: numbers of blocks, in the smallest of which blocks repeat.
        sum_bytes: of the one sum: tokens times channels.
    """

    compile: Callable[..., tuple[Any, Iterator[Any]]]
    depths: tuple[int, int]
    sum_bytes: int


def deep_latte(num_blocks: int, **options: Any) -> tuple[Any, Iterator[Any]]:
    """Spatial and temporal blocks take turns."""
    compiled = compiled_pab(tiny_latte(num_blocks // 2), **options)
    return compiled, Loop(calls_of(compiled), ddim_timesteps(7)).steps()


def deep_cogvideox(num_blocks: int, **options: Any) -> tuple[Any, Iterator[Any]]:
    """Video and prompt are two streams that every block joins."""
    dit = CATALOGUE["cogvideox"]
    dit = replace(dit, config={**dit.config, "num_layers": num_blocks})
    compiled, loop = compiled_pab(build(dit), **options), Denoising(dit, 7)
    return compiled, (run(compiled, **loop.at(step)) for step in range(7))


@pytest.mark.long
@pytest.mark.parametrize(
    "deep",
    [
        pytest.param(Deep(deep_latte, (8, 12), 4 * (4 * 4 * 4) * 16), id="spatial and temporal"),
        # The prompt is not read behind the last block.
        pytest.param(Deep(deep_cogvideox, (4, 6), 4 * 2 * (3 * 4 * 6) * 32), id="two streams"),
    ],
)
@pytest.mark.slow
def test_neither_caches_nor_pieces_grow_with_depth(deep: Deep) -> None:
    rule = Rule({**ALL, "joint": 2}, (0.0, 1.0), 1)
    options = {"cut": "gated", "coalesce": True, **rule.options()}
    pieces = []
    for num_blocks in deep.depths:
        compiled, generation = deep.compile(num_blocks, **options)
        held = [held_bytes(compiled) for _ in generation]
        # Computed at every second step; a line needs two of them while it is drawn.
        assert held == [[deep.sum_bytes] * num for num in (1, 1, 2, 1, 2, 0, 0)], num_blocks
        stats = pab_compile.stats(compiled)
        assert stats.peak_cache_bytes == 2 * deep.sum_bytes, num_blocks
        found = pab_compile.explain(compiled)
        assert found.cache_bytes == stats.peak_cache_bytes
        assert len(found.sites) >= 2 * num_blocks
        assert sum(site.cache_bytes for site in found.sites) == found.cache_bytes
        assert {site.kept_with for site in found.sites} == {"", found.sites[0].name}
        pieces.append(stats.num_pieces)
    assert pieces[0] == pieces[1]


def held_bytes(compiled: Any) -> list[int]:
    """Bytes of every memory that a cache entry of the running generation holds."""
    lanes = last_generation(compiled, "Nothing is held").running.lanes
    entries = [cached for lane in lanes for cached in lane.cache.values()]
    tensors = [t for cached in entries for output in cached._history for t in output.kept]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return list(storages.values())


@pytest.mark.long
def test_explain_counts_the_sum_before_a_model_runs() -> None:
    rule = Rule(ALL, (0.0, 1.0), 1)
    compiled, generation = deep_latte(2, cut="gated", coalesce=True, **rule.options())
    assert [*generation] == [*range(7)]
    peak = pab_compile.stats(compiled).peak_cache_bytes
    assert explained(compiled).cache_bytes == peak


@pytest.mark.slow
def test_with_inductor_it_equals_the_oracle() -> None:
    model, table, rule = tiny_latte(depth=1), ddim_timesteps(6), Rule(ALL, (0.0, 1.0), 1)
    options = {"cut": "gated", "coalesce": True, **rule.options()}
    compiled = compiled_pab(model, inner="inductor", **options)
    expected = Loop(Oracle(model, rule, "gated"), table).run()
    assert_same(Loop(calls_of(compiled), table).run(), expected, 1e-4)


@pytest.mark.long
@pytest.mark.parametrize("plan", ["function", "file"])
def test_plans_that_are_no_rules(plan: str, tmp_path: Path) -> None:
    model, table = tiny_latte(depth=1), ddim_timesteps(6)
    rows = {site.name: [COMPUTE, COMPUTE, 1, 0, COMPUTE, 1] for site in explained(model).sites}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_to_json(rows, 6)))

    def function(site: Any, step: int, *_: Any) -> int | None:
        return None if rows[site.name][step] == COMPUTE else rows[site.name][step]

    given = path if plan == "file" else function
    compiled = compiled_pab(model, cut="gated", coalesce=True, plan=given)
    single = compiled_pab(model, cut="gated", plan=function)
    expected = Loop(calls_of(single), table).run()
    assert_same(Loop(calls_of(compiled), table).run(), expected)
    peaks = [pab_compile.stats(way).peak_cache_bytes for way in (compiled, single)]  # type: ignore[arg-type]
    assert peaks[1] == (5 if plan == "file" else 1) * peaks[0]


def explained(model: Any) -> pab_compile.Explanation:
    inputs = {"timestep": torch.tensor([5.0]), "encoder_hidden_states": draw_prompt()}
    return pab_compile.explain(model, draw_latents(), **inputs)
