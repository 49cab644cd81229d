"""The examples of sequence parallelism do what they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import traffic

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_traffic_prints_the_published_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    traffic.main(["--ranks", "8"])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["8", "t", "23.079", "13.078"]


@pytest.mark.slow
def test_two_processes_make_the_video_of_one() -> None:
    command = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    found = subprocess.run(
        [*command, str(EXAMPLES / "torchrun_latte.py"), "--steps", "4"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("largest difference") == 2
