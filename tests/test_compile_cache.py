"""Inductor's cache on disk: stock Inductor and pab with any options may share one directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from latte import Loop, assert_different, assert_same, calls_of, ddim_timesteps, tiny_latte
from oracle import Oracle, Rule

NUM_STEPS = 6
ONES = Rule({})
REUSE = Rule({"spatial": 2, "temporal": 3, "cross": 2, "mlp": 2}, (0.0, 1.0))
VARIANTS: dict[str, tuple[Rule, str] | None] = {
    "stock": None,
    "ones": (ONES, "attention"),
    "reuse": (REUSE, "attention"),
    "gated": (REUSE, "gated"),
}
WORKER = """
import sys, json, torch
from test_compile_cache import work
torch.set_num_threads(1)
print(json.dumps(work(sys.argv[2:], sys.argv[1])))
"""


def work(variants: list[str], folder: str) -> dict[str, int]:
    """What a process does: run some variants, save their predictions, say what the cache had."""
    for variant in variants:
        torch._dynamo.reset()
        compiled = compile_variant(variant)
        predictions = Loop(calls_of(compiled), ddim_timesteps(NUM_STEPS)).run()
        torch.save(predictions, Path(folder) / f"{variant}.pt")
    counted = torch._dynamo.utils.counters["inductor"]
    return {name: counted[f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}


def compile_variant(variant: str) -> Any:
    made = VARIANTS[variant]
    if made is None:
        return torch.compile(tiny_latte(depth=1))
    rule, cut = made
    return torch.compile(tiny_latte(depth=1), backend="pab", options={"cut": cut, **rule.options()})


def run_in_processes(order: list[list[str]], folder: Path) -> list[dict[str, int]]:
    """Run groups of variants, each group in a process of its own, all on one cache."""
    here = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
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


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    """Predictions of eager and of the oracle, which know of no compiler."""
    model = tiny_latte(depth=1)
    timesteps = ddim_timesteps(NUM_STEPS)
    eager = Loop(calls_of(model), timesteps).run()
    reuse, gated = (
        Loop(Oracle(model, REUSE, cut), timesteps).run() for cut in ("attention", "gated")
    )
    for one, other in ((eager, reuse), (eager, gated), (reuse, gated)):
        assert_different(one, other)
    return {"stock": eager, "ones": eager, "reuse": reuse, "gated": gated}


@pytest.mark.slow
def test_processes_that_share_a_cache_get_their_own_numbers(
    expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    # Plans that reuse share pieces; the other two are whole graphs of their own.
    orders = [[["stock", "gated"], ["reuse", "ones"]], [["ones", "reuse"], ["gated", "stock"]]]
    folders = [tmp_path / "forwards", tmp_path / "backwards"]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor() as both:
        counts = list(both.map(run_in_processes, orders, folders))
    for folder, found in zip(folders, counts, strict=True):
        for variant in VARIANTS:
            assert_same(torch.load(folder / f"{variant}.pt"), expected[variant], 1e-4)
        # Else the processes shared nothing, and this would prove nothing.
        assert found[0]["miss"] > 0, found
        assert found[1]["hit"] > 0, found
