"""Inductor's cache on disk: stock Inductor and pab with any options may share one directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.broken_forwards import (
    CHANNELS,
    SHAPE,
    BrokenDiT,
    caller,
    denoise,
    draw,
    noise,
    prompts,
    sinusoids,
    table,
)

NUM_STEPS = 4
RANGES = {"spatial": 2, "cross": 3, "mlp": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "reuse": {"ranges": RANGES},
    "gated": {"ranges": RANGES, "cut": "gated"},
}
WORKER = """
import sys, json, torch
from test_compile_cache import work
torch.set_num_threads(1)
print(json.dumps(work(sys.argv[2:], sys.argv[1])))
"""


class OneBlock(BrokenDiT):
    """The first block only, since every kernel takes long to compile."""

    def forward(  # type: ignore[override]
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        batch, _, frames, height, width = latents.shape
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(batch, -1, CHANNELS))
        x = self.first(x, self.time(sinusoids(timestep)), self.text(prompt), frames)
        return self.last(x).view(batch, frames, height, width, CHANNELS).permute(0, 4, 1, 2, 3)


def work(variants: list[str], folder: str) -> dict[str, int]:
    """What a process does: run some variants, save their predictions, say what the cache had."""
    for variant in variants:
        torch.save(generate(variant, "inductor"), Path(folder) / f"{variant}.pt")
    counted = torch._dynamo.utils.counters["inductor"]
    return {name: counted[f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}


def generate(variant: str, inner: str) -> torch.Tensor:
    """The latents of every step, with a compiler of the pieces; ``stock`` is no backend of ours."""
    torch._dynamo.reset()
    model: Any = draw(OneBlock)
    if variant == "stock":
        model = torch.compile(model, backend=inner)
    else:
        options = {"inner": inner, "window": (0.0, 1.0), **VARIANTS[variant]}
        model = torch.compile(model, backend="pab", options=options)
    return torch.stack(list(denoise(caller(model), noise(*SHAPE), prompts(1), table(NUM_STEPS))))


def run_in_processes(order: list[list[str]], folder: Path) -> list[dict[str, int]]:
    """Run groups of variants, each group in a process of its own, all on one cache."""
    here = Path(__file__).parent
    folders = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
    }
    found = []
    for variants in order:
        command = [sys.executable, "-c", WORKER, str(folder), *variants]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return found


@pytest.mark.long
@pytest.mark.slow
def test_processes_that_share_a_cache_get_their_own_numbers(tmp_path: Path) -> None:
    expected = {variant: generate(variant, "eager") for variant in ("stock", *VARIANTS)}
    for one, other in (("stock", "reuse"), ("stock", "gated"), ("reuse", "gated")):
        assert not torch.allclose(expected[one], expected[other], 1e-3, 1e-3), (one, other)
    # Plans that reuse share pieces. ``test_parity`` runs one without reuse beside stock.
    counts = run_in_processes([["stock", "gated"], ["reuse"]], tmp_path)
    for variant, numbers in expected.items():
        found_there = torch.load(tmp_path / f"{variant}.pt")
        torch.testing.assert_close(found_there, numbers, rtol=1e-4, atol=1e-5)
    # Else the processes shared nothing, and this would prove nothing.
    assert counts[0]["miss"] > 0, counts
    assert counts[1]["hit"] > 0, counts
