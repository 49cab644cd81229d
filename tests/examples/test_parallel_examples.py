"""The examples of sequence parallelism do what they print."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
import torch
import traffic

from captured import analysed, captured_module
from latte import assert_same, draw_latents, draw_prompt
from lockstep import run_ranks
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import lay_out
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.shard import Ranks

from .tiny import build, inputs

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_traffic_prints_the_published_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    traffic.main(["--ranks", "8"])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["8", "t", "23.079", "13.078"]


def test_scaling_prints_times_beside_the_published_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scaling.main(["--depth", "1"])
    printed = capsys.readouterr().out
    words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    rows = [int(word) for word in words if word.isdigit()]
    assert rows == [1, 2, 4, 8, 16, 32, 64]
    assert "1.29x" in printed and "8.12x" in printed and "10.50x" in printed


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


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("open-sora", ("t", "h", "w")),
        ("open-sora-plan-1.1", ("t", "h", "w")),
        ("open-sora-plan-1.2", ("t", "h", "w", "s")),
    ],
)
def test_ranks_compute_together_what_one_device_computes(name: str, axes: tuple[str, ...]) -> None:
    """4 frames of 4 x 4 tokens: three ranks share them unevenly."""
    prompts = draw_prompt(batch=2)
    given = inputs(name, draw_latents(batch=2), torch.tensor([500, 500]), prompts)
    model = captured_module(build(name, depth=1, num_heads=3), **given)
    program = analysed(model)
    known = dict(candidates(program.inferred_axes))
    mixers, expected = program.mixers, model.eager()[0]
    for axis, num_ranks in itertools.product(axes, (2, 3)):
        layout = lay_out(model.graph, program.inferred_axes, mixers, known[axis], num_ranks)
        modules = [
            localise(model.graph_module, layout, Ranks(num_ranks, rank)).graph_module
            for rank in range(num_ranks)
        ]
        with torch.no_grad():
            for outputs in run_ranks(modules, model.args):
                assert_same(outputs[0], expected)
