"""The examples of sequence parallelism do what they print."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
import torch

import traffic
from helpers.captured import Captured, captured_module
from helpers.latte import draw_latents, draw_prompt
from helpers.lockstep import Step, check_generations

from .tiny import NAMES, build, inputs

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.long
def test_traffic_prints_the_published_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    traffic.main(["--ranks", "8"])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["8", "t", "23.079", "13.078"]


@pytest.mark.long
def test_scaling_prints_times_beside_the_published_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scaling.main(["--depth", "1"])
    printed = capsys.readouterr().out
    words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    rows = [int(word) for word in words if word.isdigit()]
    assert rows == [1, 2, 4, 8, 16, 32, 64]
    assert "1.29x" in printed and "8.12x" in printed and "10.50x" in printed


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_processes_make_the_video_of_one() -> None:
    """The example of Open-Sora differs in its model: ``test_parallel`` runs that on its ranks."""
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    found = subprocess.run(
        [*command, str(EXAMPLES / "torchrun_latte.py"), "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("largest difference") == 2


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_two_processes_make_the_video_of_a_pipeline_with_two_calls(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    options = ("--steps", "6", "--check", "--output", str(tmp_path / "video.gif"))
    found = subprocess.run(
        [*command, str(EXAMPLES / "torchrun_pipeline.py"), *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("largest difference to one process: ") == 1
    assert (tmp_path / "video.gif").stat().st_size > 0


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.xdist_group("ranks")
def test_the_benchmark_of_several_devices_runs_on_cpus() -> None:
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    found = subprocess.run(
        [*command, "-m", "benchmarks.ranks", "--quick"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("largest difference") == 2


@functools.cache
def model_of(name: str) -> tuple[Captured, list[Step]]:
    """A model, and the inputs of a generation of two lanes that have different prompts."""
    steps: list[Step] = []
    for step in range(5):
        latents, timestep = draw_latents(seed=step, batch=2), torch.tensor([900 - 150 * step] * 2)
        prompts = (draw_prompt(seed, batch=2) for seed in (2, 3))
        steps.append([inputs(name, latents, timestep, prompt) for prompt in prompts])
    return captured_module(build(name, depth=1, num_heads=4), **steps[0][0]), steps


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "axis", "num_ranks"),
    [
        pytest.param(name, axis, num_ranks, marks=pytest.mark.xdist_group(name))
        for name in NAMES
        for axis, num_ranks in (("t", 2), ("h", 2), ("t", 3), ("w", 3), ("t", 4))
    ],
)
def test_ranks_generate_what_one_device_does_with_any_reuse(
    name: str, axis: str, num_ranks: int
) -> None:
    """4 frames of 4 x 4 tokens, and 4 heads, which three ranks share unevenly."""
    model, steps = model_of(name)
    check_generations(model, axis, num_ranks, steps)
