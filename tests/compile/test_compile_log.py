"""The log says of every program what was compiled, why, and how long it took."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import pab_compile
from helpers.any_denoisers import Broken, Denoiser
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, draw_latents, tiny_latte

LOGGER = logging.getLogger("pab_compile.compile.compile_log")


class Lines(logging.Handler):
    """Keeps the lines of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, level = Lines(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler.lines
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


def run(model: Any, latents: torch.Tensor | None = None) -> None:
    latents = draw_latents() if latents is None else latents
    Loop(calls_of(model), ddim_timesteps(3), latents=latents).run()


def test_every_program_has_one_line_with_its_cause(lines: list[str]) -> None:
    handle = pab_compile.enable(model := tiny_latte(depth=1), "linear3", inner="eager")
    run(model)
    run(model)
    handle.set({"ranges": {"spatial": 2}})
    run(model)
    first, form = lines
    assert first.startswith("LatteTransformer3DModel: first program; hidden_states 1x4x4x8x8, ")
    assert "; 5 sites; " in first
    seconds = re.search(r"; ([\d.]+) s: capture ([\d.]+), passes ([\d.]+), inner [a-z]+ ", first)
    assert seconds is not None, first
    total, *parts = map(float, seconds.groups())
    assert 0 < sum(parts) <= total + 0.2
    assert form.startswith("LatteTransformer3DModel: a plan of another form; ")
    assert re.search(r"; \d+ pieces \(\d+ new, \d+ shared\); ", form), form


@pytest.mark.long
def test_equal_blocks_share_their_pieces(lines: list[str]) -> None:
    run(compiled_pab(tiny_latte(depth=2), ranges={"spatial": 2}))
    found = re.search(r"(\d+) pieces \((\d+) new, (\d+) shared\)", lines[0])
    assert found is not None, lines
    num_all, num_new, num_shared = map(int, found.groups())
    assert num_all == num_new + num_shared
    assert num_shared > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_other_sizes_are_named_also_if_dynamo_traces_again(lines: list[str], dynamic: bool) -> None:
    options = {"inner": "eager", "ranges": "linear3", "cut": "output"}
    model = Denoiser().eval().requires_grad_(False)
    compiled = torch.compile(model, backend="pab", options=options, dynamic=dynamic)
    run(compiled)
    run(compiled, draw_latents(size=4))
    assert len(lines) == 2
    assert lines[1].startswith(
        "Denoiser: Dynamo traced it again, " if not dynamic else "Denoiser: "
    )
    assert "other sizes (hidden_states 1x4x4x8x8 -> 1x4x4x4x4); " in lines[1], lines[1]


def test_a_graph_of_several_says_which_it_is_and_why_it_computes(lines: list[str]) -> None:
    compiled = compiled_pab(Broken().eval().requires_grad_(False), on_unsupported="passthrough")
    with pytest.warns(UserWarning, match="without reuse"):
        run(compiled)
    assert {line.partition(": ")[0] for line in lines} == {
        f"Broken (graph {number} of the forward)" for number in range(1, len(lines) + 1)
    }
    assert all("; computed at every step: " in line for line in lines)
