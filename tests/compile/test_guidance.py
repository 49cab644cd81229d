"""Guidance that is left out at single steps equals arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from helpers.captured import CHANNELS, FRAMES, HEIGHT, WIDTH, usual, values
from helpers.guided import (
    CALLS,
    FORMS,
    LEFT_OUT,
    ROUNDING,
    SECOND_HALF,
    Small,
    by_hand,
    compiled,
    in_a_batch,
    in_calls,
    prompts,
    run,
    small,
    timesteps,
    written,
)
from helpers.latte import assert_different, assert_same
from helpers.stepping import NUM_STEPS, Stepping, SteppingDit


@pytest.fixture(scope="module")
def dit() -> Small:
    return small()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("guidance", "caller", "computes"), FORMS)
def test_what_is_left_out_is_answered_from_the_differences_of_the_plan(
    tmp_path: Path, guidance: Any, caller: Any, computes: int, dtype: torch.dtype
) -> None:
    dit = small(dtype)
    expected, calls = by_hand(dit, computes=computes, dtype=dtype)
    model = compiled(dit, tmp_path, guidance)
    for _ in range(2):
        assert_same(run(caller(model), dtype=dtype), expected, ROUNDING[dtype])
    seen = pab_compile.stats(model)
    is_batch = guidance is not CALLS
    assert (seen.computed, seen.notes) == ({"output": 6 if is_batch else calls}, ())
    assert calls == 10
    assert seen.timeline.strips() == ["CC~pC~pC"]
    without, _ = by_hand(dit, {}, dtype=dtype)
    assert_different(expected, without, 2 * ROUNDING[dtype])


def test_prompts_of_two_lengths_are_those_of_one_step(dit: Small, tmp_path: Path) -> None:
    texts = [prompts()[0], prompts()[1][:, :-1]]
    model = compiled(dit, tmp_path, CALLS)
    actual = run(in_calls(model), texts)
    expected, _ = by_hand(dit, given=(usual("latents"), texts))
    assert_same(actual, expected)
    assert not pab_compile.stats(model).notes


def test_half_of_a_batch_takes_half_of_the_operations(dit: Small, tmp_path: Path) -> None:
    counts: list[int] = []

    def inner(graph: Any, args: Any) -> Callable[..., Any]:
        def counted(*args: torch.Tensor) -> Any:
            with FlopCounterMode(display=False) as counter:
                found = graph(*args)
            counts[-1] += counter.get_total_flops()
            return found

        return counted

    model = compiled(dit, tmp_path, SECOND_HALF, inner=inner)

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        counts.append(0)
        return in_a_batch(model)(x, t, texts)

    run(call)
    rows = usual("latents").repeat(2, 1, 1, 1, 1)
    with FlopCounterMode(display=False) as counter:
        dit(rows, timesteps()[:1].expand(len(rows)), torch.cat(prompts()))
    assert counts[3] == counts[6] == 0
    # What reads no latents is computed for all rows: the modulation and the keys of the prompt.
    assert counts[2] == counts[5] < 0.6 * counter.get_total_flops()


def test_one_half_serves_requests_of_all_sizes(dit: Small, tmp_path: Path) -> None:
    model, pieces = compiled(dit, tmp_path, SECOND_HALF), []
    for videos, tokens in ((2, 7), (3, 9), (5, 8), (4, 11)):
        x = values(videos, CHANNELS, FRAMES, HEIGHT, WIDTH, seed=videos)
        texts = [values(videos, tokens, CHANNELS, seed=tokens + i) for i in (0, 1)]
        expected, _ = by_hand(dit, computes=1, given=(x, texts))
        assert_same(run(in_a_batch(model), texts, latents=x), expected)
        seen = pab_compile.stats(model)
        assert (seen.notes, seen.timeline.strips()) == ((), ["CC~pC~pC"])
        pieces.append(seen.num_pieces)
    assert pieces[1] == pieces[2] == pieces[3], "the second size was compiled for all others"


class GuidedBranches:
    """Branches of a model that leave guidance out, by hooks in eager code."""

    def __init__(self, entries: Sequence[Any], weights: Any) -> None:
        self.entries, self.weights = entries, weights
        self.found: dict[tuple[int, str, int], torch.Tensor] = {}
        self.now = (0, 0)

    def branch(self, name: str, kind: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        step, call = self.now
        computed = [s for s in range(step) if self.entries[s] == "C"]
        left = self.weights.get(str(step))
        if self.entries[step] != "C":
            terms = zip(self.entries[step], computed[-len(self.entries[step]) :], strict=True)
            result: Any = sum(w * self.found[s, name, call] for w, s in terms)
        elif left is not None and call == 1:
            both = [s for s in computed if str(s) not in self.weights][-len(left) :]
            result = self.found[step, name, 0] - sum(
                w * (self.found[s, name, 0] - self.found[s, name, 1])
                for w, s in zip(left, both, strict=True)
            )
        else:
            result = compute()
        self.found[step, name, call] = result
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("cut", "coalesce"), [("attention", False), ("branch", False), ("branch", True)], ids=str
)
def test_other_cuts_answer_each_site_as_hooks_do(
    tmp_path: Path, cut: str, coalesce: bool, dtype: torch.dtype
) -> None:
    entries = ["C", "C", "C", [-0.3, 1.3], "C", [-0.3, 1.3], "C", "C", [0.9], "C"]
    weights = {"2": [-0.2, 0.9], "6": [-0.3, 1.1]}
    loop = Stepping(texts=lambda step: (1, 2), strength=lambda step, call: 0.7, dtype=dtype)

    def outputs(call: Callable[..., torch.Tensor]) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def noted(*args: Any, **inputs: Any) -> torch.Tensor:
            found.append(call(*args, **inputs))
            return found[-1]

        loop.run(noted)
        return torch.stack(found)

    def hooked(left_out: Any) -> torch.Tensor:
        eager, hooks = SteppingDit(dtype), GuidedBranches(entries, left_out)
        eager.branch = hooks.branch

        def call(step: int, number: int, **inputs: Any) -> torch.Tensor:
            hooks.now = step, number
            return eager(**inputs)

        return outputs(call)

    model = SteppingDit(dtype)
    shape = {"cut": cut, "coalesce": coalesce, "num_steps": NUM_STEPS, "entries": entries}
    pab = compiled(model, tmp_path, CALLS, weights, **shape)
    actual = outputs(lambda step, number, **inputs: pab(**inputs))
    assert_same(actual, hooked(weights), ROUNDING[dtype])
    assert_different(hooked({}), hooked(weights), 2 * ROUNDING[dtype])
    seen = pab_compile.stats(pab)
    assert seen.notes == ()
    assert (seen.computed["full"], seen.computed["cross"]) == (24, 24)


@pytest.mark.parametrize(("guidance", "caller", "computes"), [FORMS[0], FORMS[3]])
def test_other_weights_compile_nothing(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, computes: int
) -> None:
    torch._dynamo.reset()
    first = written(tmp_path, guidance, LEFT_OUT, {})
    handle = pab_compile.enable(dit, plan=str(first), inner="eager")
    try:
        run(caller(dit))
        (before,) = handle.stats().values()
        other = {"2": [0.1, 0.7], "5": [0.5, -0.2, 0.9]}
        handle.set(str(written(tmp_path, guidance, other, {})))
        actual = run(caller(dit))
        (after,) = handle.stats().values()
    finally:
        handle.disable()
    assert_same(actual, by_hand(dit, other, computes)[0])
    assert (after.num_pieces, after.compile_seconds) == (before.num_pieces, before.compile_seconds)
