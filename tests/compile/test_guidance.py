"""Guidance that is left out at single steps equals arithmetic by hand. In doubt it is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from helpers.captured import CHANNELS, FRAMES, HEIGHT, SPACE, WIDTH, SmallDiT, usual, values
from helpers.latte import assert_different, assert_same
from helpers.stepping import NUM_STEPS, Stepping, SteppingDit

STEPS = 8
COMBINE = (-0.4, 1.4)
ENTRIES = ["C", "C", "C", list(COMBINE), "C", "C", list(COMBINE), "C"]
LEFT_OUT = {"2": [2.0, -4.0], "5": [-3.0, 1.0, 4.0]}
SOURCES = {2: (0, 1), 5: (0, 1, 4)}
CALLS: dict[str, Any] = {"prompts": "calls"}
FIRST_HALF: dict[str, Any] = {"prompts": "batch", "computes": "first"}
SECOND_HALF: dict[str, Any] = {"prompts": "batch", "computes": "second"}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Small(SmallDiT):
    """A small transformer that takes any number of rows."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(-1, SPACE, CHANNELS))
        angles = timestep[:, None] * torch.arange(8, dtype=latents.dtype)
        emb = self.time(torch.sin(angles)).repeat_interleave(FRAMES, 0)[:, None]
        text = self.text(prompt).repeat_interleave(FRAMES, 0)
        for block in self.blocks:
            x = self.between(block(x, emb, text))
        x = self.last(x).reshape(len(latents), FRAMES, *latents.shape[3:], CHANNELS)
        return x.permute(0, 4, 1, 2, 3)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


def small(dtype: torch.dtype = torch.float32, kind: type[Small] = Small) -> Small:
    torch.manual_seed(0)
    return kind(2).requires_grad_(False).to(dtype)


@pytest.fixture(scope="module")
def dit() -> Small:
    return small()


def compiled(dit: Any, path: Path, guidance: Any, weights: Any = LEFT_OUT, **more: Any) -> Any:
    path = written(path, guidance, weights, more)
    torch._dynamo.reset()
    return torch.compile(dit, backend="pab", options={"plan": str(path), "inner": "eager", **more})


def written(path: Path, guidance: Any, weights: Any, more: Any) -> Path:
    """A plan file. What belongs into it is taken out of the options."""
    content = {"format": "pab_compile.plan/2", "num_steps": STEPS, "cut": "output"}
    content |= {"entries": ENTRIES, "guidance": {**guidance, "weights": weights}}
    content |= {name: more.pop(name) for name in ("cut", "coalesce", "num_steps") if name in more}
    content["entries"] = more.pop("entries", content["entries"])
    path = path / f"{len(list(path.iterdir()))}.json"
    path.write_text(json.dumps(content))
    return path


def timesteps() -> torch.Tensor:
    return torch.linspace(1000, 125, STEPS)


def prompts(count: int = 2) -> list[torch.Tensor]:
    return [usual("prompt") * (1 - 0.4 * i) for i in range(count)]


Call = Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], list[torch.Tensor]]


def in_calls(model: Any, backwards: bool = False) -> Call:
    """Calls the model once per prompt."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        ordered = texts[::-1] if backwards else texts
        found = [model(x, t.expand(len(x)).to(x), text) for text in ordered]
        return found[::-1] if backwards else found

    return call


def in_a_batch(model: Any) -> Call:
    """Calls the model once, with all prompts."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        rows = torch.cat([x] * len(texts))
        return list(model(rows, t.expand(len(rows)).to(x), torch.cat(texts)).chunk(len(texts)))

    return call


def run(
    call: Call,
    texts: Any = None,
    dtype: torch.dtype = torch.float32,
    latents: torch.Tensor | None = None,
) -> torch.Tensor:
    """All that the model returned in a generation."""
    x, found, table = usual("latents").to(dtype) if latents is None else latents, [], timesteps()
    texts = [text.to(dtype) for text in (prompts() if texts is None else texts)]
    for t in table:
        now = call(x, t, texts)
        found.append(torch.stack(now))
        x = x - (now[-1] + 2 * (now[0] - now[-1])) / STEPS
    return torch.stack(found)


def rounded(terms: Sequence[tuple[float, torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """A weighted sum, rounded once."""
    return torch.stack([weight * x.double() for weight, x in terms]).sum(0).to(dtype)


def by_hand(
    dit: Any,
    left_out: Any = LEFT_OUT,
    computes: int = 0,
    dtype: torch.dtype = torch.float32,
    given: Any = None,
) -> tuple[torch.Tensor, int]:
    """The same with the plan written out; also the number of calls with one prompt.

    Args:
        left_out: step -> weights.
        computes: the prompt that always computes.
        given: the latents and the prompts, if they are not the usual ones.
    """
    x, texts = (usual("latents"), prompts()) if given is None else given
    x, found, calls = x.to(dtype), [], 0
    texts, other = [text.to(dtype) for text in texts], 1 - computes
    for step, t in enumerate(timesteps()):
        now = [x, x]
        if ENTRIES[step] != "C":
            before = [s for s in range(step) if ENTRIES[s] == "C"][-2:]
            for i in (0, 1):
                pairs = zip(COMBINE, before, strict=True)
                now[i] = rounded([(w, found[s][i]) for w, s in pairs], dtype)
        else:
            now[computes], calls = dit(x, t.expand(len(x)).to(x), texts[computes]), calls + 1
            if str(step) in left_out:
                pairs = zip(left_out[str(step)], SOURCES[step], strict=True)
                terms = [(-w, found[s][computes] - found[s][other]) for w, s in pairs]
                now[other] = rounded([(1.0, now[computes]), *terms], dtype)
            else:
                now[other], calls = dit(x, t.expand(len(x)).to(x), texts[other]), calls + 1
        found.append(torch.stack(now))
        x = x - (now[1] + 2 * (now[0] - now[1])) / STEPS
    return torch.stack(found), calls


FORMS = [
    pytest.param(CALLS, in_calls, 0, id="two calls"),
    pytest.param(CALLS, lambda model: in_calls(model, True), 1, id="two calls, the other order"),
    pytest.param(FIRST_HALF, in_a_batch, 0, id="first half"),
    pytest.param(SECOND_HALF, in_a_batch, 1, id="second half"),
]


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


# In doubt.


def of_two_videos(model: Any) -> Call:
    """Two videos side by side, each with a prompt of its own."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        latents = (x, x.flip(0))
        return [model(y, t.expand(2), text) for y, text in zip(latents, texts, strict=True)]

    return call


def unlike_halves(model: Any) -> Call:
    """A batch of two videos, each with a prompt of its own."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        rows = torch.cat([x, x.flip(0)])
        return list(model(rows, t.expand(len(rows)), torch.cat(texts)).chunk(2))

    return call


ONE = [usual("prompt")] * 2


@pytest.mark.parametrize(
    ("guidance", "caller", "texts", "words"),
    [
        pytest.param(CALLS, in_calls, prompts(3), "makes 3", id="3 calls"),
        pytest.param(CALLS, in_calls, prompts(1), "distilled", id="one call"),
        pytest.param(CALLS, in_a_batch, prompts(), "one. Tune the plan for both", id="batch"),
        pytest.param(CALLS, in_calls, ONE, "not of one video", id="one prompt"),
        pytest.param(CALLS, of_two_videos, prompts(), "not of one video", id="two videos"),
        pytest.param(SECOND_HALF, in_calls, prompts(), "makes 2 calls", id="calls"),
        pytest.param(SECOND_HALF, in_a_batch, prompts(4), "are not the same", id="four prompts"),
        pytest.param(SECOND_HALF, in_a_batch, prompts(3), "are not the same", id="three prompts"),
        pytest.param(SECOND_HALF, in_a_batch, ONE, "are not the same", id="one prompt, batch"),
        pytest.param(SECOND_HALF, unlike_halves, prompts(), "are not the same", id="halves"),
    ],
)
def test_in_doubt_guidance_is_computed(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, texts: Any, words: str
) -> None:
    model = compiled(dit, tmp_path, guidance)
    actual = run(caller(model), texts)
    expected = run(caller(compiled(dit, tmp_path, guidance, {})), texts)
    torch.testing.assert_close(actual, expected)
    notes = pab_compile.stats(model).notes
    assert any(words in note for note in notes), notes


class MixesRows(Small):
    """Every row reads the mean of all rows."""

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class BreaksUp(Small):
    """Dynamo breaks it into several graphs."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        found = super().forward(latents, timestep, prompt)
        torch._dynamo.graph_break()
        return found.tanh()


@pytest.mark.parametrize(
    ("kind", "words"),
    [(MixesRows, "in between: return x - x.mean"), (BreaksUp, "several graphs")],
    ids=str,
)
def test_a_batch_that_cannot_be_halved_is_computed(
    tmp_path: Path, kind: type[Small], words: str
) -> None:
    dit = small(kind=kind)
    model = compiled(dit, tmp_path, SECOND_HALF)
    actual = run(in_a_batch(model))
    expected = run(in_a_batch(compiled(dit, tmp_path, SECOND_HALF, {})))
    torch.testing.assert_close(actual, expected)
    notes = pab_compile.stats(model).notes
    assert any("cannot be computed alone" in note and words in note for note in notes), notes


@pytest.mark.parametrize(("guidance", "caller", "computes"), [FORMS[0], FORMS[3]])
def test_with_a_budget_guidance_is_computed(
    dit: Small, tmp_path: Path, guidance: Any, caller: Any, computes: int
) -> None:
    model = compiled(dit, tmp_path, guidance, cache_budget="1 GB")
    run(caller(model))
    assert any("with a budget" in note for note in pab_compile.stats(model).notes)


def test_calls_that_swap_at_a_step_are_computed_there(dit: Small, tmp_path: Path) -> None:
    model = compiled(dit, tmp_path, CALLS)
    counts: list[int] = []

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        found = in_calls(model, len(counts) == 5)(x, t, texts)
        counts.append(pab_compile.stats(model).computed["output"])
        return found

    run(call)
    assert [b - a for a, b in zip([0, *counts], counts, strict=False)] == [2, 2, 1, 0, 2, 2, 0, 2]
    assert any("came first there" in note for note in pab_compile.stats(model).notes)
