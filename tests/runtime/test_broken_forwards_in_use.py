"""Forwards of several graphs in use: other sizes and inputs, threads, failures, Inductor."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

import pab_compile
from helpers.broken_forwards import (
    RANGES,
    SHAPE,
    BrokenDiT,
    HookOracle,
    PackedDiT,
    asker,
    caller,
    check_against_oracle,
    check_changing,
    compiled,
    denoise,
    draw,
    noise,
    packed_inputs,
    prompts,
    sinusoids,
    table,
)
from pab_compile.compile import parts
from pab_compile.passes.graph.structure import structure_key

PLACES = ("time", "blocks", "tail")


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# Other sizes and inputs.


def test_sizes_that_dynamo_leaves_open_are_right_each() -> None:
    model = draw(BrokenDiT, ("blocks",))
    twin, oracle = compiled(model, RANGES, dynamic=True), HookOracle(model, RANGES)
    for shape in (SHAPE, (2, 4, 5, 2, 4)):
        check_against_oracle(twin, oracle, shape, prompts(1), table())
        found = pab_compile.stats(twin)
        assert found.computed_steps == {k: len(v) for k, v in oracle.computed.items()}
        assert found.notes == ()


@pytest.mark.long
@pytest.mark.slow
def test_packed_prompts_at_sizes_that_dynamo_leaves_open_are_right_each() -> None:
    model = draw(PackedDiT)
    twin, oracle = compiled(model, RANGES, dynamic=True), HookOracle(model, RANGES)
    for size, lengths in (((3, 4, 8), (5, 3)), ((2, 6, 4), (2, 2))):
        lanes = {"cond": packed_inputs(1, lengths)}
        check_against_oracle(twin, oracle, (2, 4, *size), lanes, table(), name="x")
        assert pab_compile.stats(twin).computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}


@pytest.mark.sample("places0")
@pytest.mark.parametrize("places", [(), PLACES])
def test_a_mask_that_comes_and_goes_is_another_lane(places: tuple[str, ...]) -> None:
    model = draw(BrokenDiT, places)
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    prompt, mask = prompts(1)["lane1"], torch.arange(7)[None] < 4
    plain, masked = {"plain": prompt}, {"masked": {**prompt, "mask": mask}}
    check_against_oracle(twin, oracle, SHAPE, plain, table())
    check_against_oracle(twin, oracle, SHAPE, masked, table())
    # In the middle of a generation, and back again.
    steps = [plain, plain, plain, masked, masked, plain, masked, masked, masked, plain]
    check_changing(twin, oracle, steps)
    check_against_oracle(twin, oracle, SHAPE, plain, table())


@pytest.mark.long
def test_a_batch_that_shrinks_half_way_is_another_lane() -> None:
    model = draw(BrokenDiT, ("blocks",))
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    both = prompts(1)
    one = {"one": {"prompt": both["lane1"]["prompt"][:1]}}
    check_changing(twin, oracle, [both] * 5 + [one] * 5)
    check_changing(twin, oracle, [both] * 4 + [one] * 3 + [both] * 3)


# In place.


class Overwriting(BrokenDiT):
    """Behind a break, what the first graph made of the prompt is overwritten by the timestep."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep))
        text = self.text(prompt)
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, 4))
        self.overwrite(text, x, emb)
        x = self.first(x, emb, text, frames)
        x = self.second(x, emb, text, frames)
        return self.last(x).view(batch, frames, height, width, 4).permute(0, 4, 1, 2, 3)

    def overwrite(self, text: torch.Tensor, x: torch.Tensor, emb: torch.Tensor) -> None:
        torch._dynamo.graph_break()
        text.mul_(emb[:, None])
        x.add_(1)
        torch._dynamo.graph_break()


class Rewritten(Overwriting):
    """The same, by Python code between two graphs."""

    @torch.compiler.disable
    def overwrite(self, text: torch.Tensor, x: torch.Tensor, emb: torch.Tensor) -> None:
        text.mul_(emb[:, None])


@pytest.mark.sample("Overwriting-ranges1-True")
# In inference mode nothing shows that it was. Every two of the three meet.
@pytest.mark.parametrize(
    ("kind", "ranges", "inference_mode"),
    [
        (Overwriting, RANGES, False),
        (Overwriting, {"spatial": 1}, True),
        (Rewritten, {"spatial": 1}, False),
        (Rewritten, RANGES, True),
    ],
)
def test_what_is_overwritten_between_graphs_is_read_anew(
    kind: type[BrokenDiT], ranges: dict[str, int], inference_mode: bool
) -> None:
    model = draw(kind)
    twin, oracle = compiled(model, ranges), HookOracle(model, ranges)
    with torch.inference_mode(inference_mode):
        check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
        check_against_oracle(twin, oracle, SHAPE, prompts(2), table())


# Modes and threads.


@pytest.mark.long
def test_under_inference_mode_as_under_no_grad() -> None:
    model = draw(BrokenDiT, PLACES)
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            check_against_oracle(twin, oracle, SHAPE, prompts(1, 2), table())
            found = pab_compile.stats(twin)
            assert found.computed_steps == {k: len(v) for k, v in oracle.computed.items()}
            assert (found.lanes, found.notes) == (2, ())


@pytest.mark.long
@pytest.mark.parametrize("warm", [False, True])
def test_threads_share_nothing(warm: bool) -> None:
    model = draw(BrokenDiT, PLACES)
    twin = compiled(model, RANGES)
    oracles = [HookOracle(model, RANGES) for _ in range(2)]
    if warm:
        check_against_oracle(twin, oracles[0], SHAPE, prompts(1), table())
    timesteps, lanes = table(), prompts(1)
    starts = [noise(*SHAPE, seed=seed) for seed in (5, 6)]
    for oracle in oracles:
        oracle.begin()
    expected = [
        list(denoise(asker(oracle), start, lanes, timesteps))
        for oracle, start in zip(oracles, starts, strict=True)
    ]
    actual: dict[int, list[torch.Tensor]] = {}
    barrier = threading.Barrier(len(starts))

    def run(number: int) -> None:
        barrier.wait(60)
        with torch.no_grad():
            actual[number] = list(denoise(caller(twin), starts[number], lanes, timesteps))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(expected):
        torch.testing.assert_close(actual[number], wanted, atol=1e-6, rtol=1e-5)


# Failures.


@torch.library.custom_op("pab_tests::fragile", mutates_args=())
def fragile(x: torch.Tensor) -> torch.Tensor:
    """Raises where the numbers are too large."""
    if x.abs().max() > 1e6:
        raise ValueError("diverged")
    return x.clone()


@fragile.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Fragile(BrokenDiT):
    """Its last graph, which holds no attention, raises on large numbers."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        return fragile(super().forward(latents, timestep, prompt))


def test_an_exception_in_a_graph_without_attention_drops_the_generation() -> None:
    model = draw(Fragile, ("tail",))
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    timesteps = table()
    given = prompts(1)["lane1"]
    steps = denoise(caller(twin), noise(*SHAPE), {"": given}, timesteps)
    next(steps), next(steps)
    with pytest.raises(ValueError, match="diverged"):
        twin(1e9 * noise(*SHAPE), timesteps[2].expand(2), **given)
    # The same table and prompt: only because nothing is left of it, this one is trusted.
    oracle.begin()
    ours = list(denoise(caller(twin), noise(*SHAPE), {"": given}, timesteps))
    theirs = list(denoise(asker(oracle), noise(*SHAPE), {"": given}, timesteps))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    found = pab_compile.stats(twin)
    assert found.computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}
    assert found.notes == ()


# Many graphs.


@pytest.mark.long
def test_many_graphs_with_two_tensors_between_them_are_each_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Long(BrokenDiT):
        """Equal graphs, each of which feeds the next with two tensors."""

        def forward(
            self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
        ) -> torch.Tensor:
            batch, _, frames, height, width = latents.shape
            emb = self.time(sinusoids(timestep))
            text = self.text(prompt)
            x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, 4))
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            x, text = self.pair(x, emb, text, frames)
            torch._dynamo.graph_break()
            return self.last(x).view(batch, frames, height, width, 4).permute(0, 4, 1, 2, 3)

        def pair(
            self, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, frames: int
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.first(x, emb, text, frames), text * 0.9

    looked_at: list[object] = []

    def looking(graph_module: torch.fx.GraphModule, **options: bool) -> str:
        looked_at.append(graph_module)
        return structure_key(graph_module, **options)

    monkeypatch.setattr(parts, "structure_key", looking)
    model = draw(Long)
    twin = compiled(model, RANGES)
    latents, given = noise(*SHAPE), prompts(1)["lane1"]
    first = table()[0].expand(2)
    torch.testing.assert_close(twin(latents, first, **given), model(latents, first, **given))
    assert pab_compile.stats(twin).computed == {"spatial": 8, "cross": 8}
    assert len(looked_at) <= 2 * 9


# Hidden conditions.


class Hidden(BrokenDiT):
    """A condition reaches the tokens through Python code between two graphs."""

    bias = 0.0

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        emb = self.time(sinusoids(timestep))
        text = add(self.text(prompt), self)
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, 4))
        x = self.first(x, emb, text, frames)
        x = self.second(x, emb, text, frames)
        return self.last(x).view(batch, frames, height, width, 4).permute(0, 4, 1, 2, 3)


@torch.compiler.disable
def add(text: torch.Tensor, model: Hidden) -> torch.Tensor:
    return text + model.bias


def test_two_calls_that_only_python_can_tell_apart_are_computed_with_a_note() -> None:
    model = draw(Hidden)
    twin = compiled(model, RANGES)
    expected, actual = [], []
    given, latents = prompts(1)["lane1"], noise(*SHAPE)
    for step in table():
        for model.bias in (0.0, 3.0):
            for results, call in ((expected, model), (actual, twin)):
                results.append(call(latents, step.expand(2), **given))
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)
    (note,) = pab_compile.stats(twin).notes
    assert "two calls of one step have the same inputs" in note


# Kernels.


@pytest.mark.long
@pytest.mark.slow
def test_inductor_compiles_the_pieces_of_every_graph() -> None:
    model = draw(PackedDiT)
    twin, oracle = compiled(model, RANGES, inner="inductor"), HookOracle(model, RANGES)
    lanes = {"cond": packed_inputs(1), "uncond": packed_inputs(2, (2, 2))}
    check_against_oracle(twin, oracle, (2, 4, 3, 4, 8), lanes, table(), name="x")
    assert pab_compile.stats(twin).computed_steps == {"spatial": 3, "temporal": 2, "cross": 2}


# Wrong inputs.


@pytest.mark.sample("places0")
@pytest.mark.parametrize("places", [(), PLACES])
def test_a_mask_of_the_wrong_shape_is_refused_and_does_no_harm(places: tuple[str, ...]) -> None:
    model = draw(BrokenDiT, places)
    twin, oracle = compiled(model, RANGES), HookOracle(model, RANGES)
    given, wrong = prompts(1)["lane1"], torch.ones(1, 9, dtype=torch.bool)
    check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
    steps = denoise(caller(twin), noise(*SHAPE, seed=6), {"lane1": given}, timesteps := table())
    oracle.begin()
    expected = list(denoise(asker(oracle), noise(*SHAPE, seed=6), {"lane1": given}, timesteps))
    actual = [next(steps) for _ in range(3)]
    with pytest.raises(RuntimeError, match=r"9.*7|7.*9"):
        twin(noise(*SHAPE), timesteps[3].expand(2), **given, mask=wrong)
    actual += list(steps)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-5)
    check_against_oracle(twin, oracle, SHAPE, prompts(1), table())
