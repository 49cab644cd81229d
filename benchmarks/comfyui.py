"""Which of ComfyUI's models are recognised: its own classes, with random weights, on a CPU.

`COMFYUI_PATH=/path/to/ComfyUI python -m benchmarks comfyui [--write]` samples each tiny model of
`tests/helpers/comfy_models.py` with ComfyUI's own patcher and sampler: without the node, with the
level `off`, and with `balanced`, twice.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import pab_compile

from .results import RESULTS_DIR, versions

ROOT = Path(__file__).parents[1]
STEPS = 8
HEAD = """\
# ComfyUI's models

Printed by `COMFYUI_PATH=... python -m benchmarks comfyui --write`. ComfyUI {comfyui}, {versions}.

Tiny models of ComfyUI's own classes with random weights run its sampler `euler` for {steps} steps.
Both prompts are in one batch. The last column is the share of the runs of sites that the first
generation reuses at the level `balanced`. It is there only if `off` gives what the model gives
without the node, a second generation gives the same as the first, and there was no note.

| model | class | reused kinds | reused |
|---|---|---|---:|
"""


def row(name: str) -> str:
    """A line of the table."""
    from helpers import real_comfy

    patched = importlib.import_module("pab_nodes.patch").patched
    torch.compiler.reset()
    patcher = real_comfy.patcher(name)
    module = type(patcher.get_model_object("diffusion_model")).__name__

    def sample(model: Any) -> torch.Tensor:
        return real_comfy.sample(model, name, steps=STEPS)

    plain = sample(patcher)
    error = ""
    for cut in ({}, {"cut": "output"}):
        try:
            off = sample(patched(patcher, {"ranges": {}, "inner": "eager", **cut}))
            model = patched(patcher, {"ranges": "linear3", "inner": "eager", **cut})
            first = sample(model)
            stats = pab_compile.stats(patcher.get_model_object("diffusion_model"))
            is_same = torch.equal(first, sample(model)) and torch.allclose(off, plain, atol=1e-4)
        except Exception as raised:  # whatever Dynamo raises is a row too
            error = error or type(raised).__name__
            torch.compiler.reset()
            continue
        kinds = ", ".join(kind for kind, times in stats.reused.items() if times)
        share = sum(stats.reused.values()) / sum([*stats.computed.values(), *stats.reused.values()])
        parts = f"parts refused ({error}); whole output" if cut else kinds
        verdict = f"{share:.0%}" if is_same and not stats.notes else "differs"
        return f"| {name} | `{module}` | {parts} | {verdict} |"
    return f"| {name} | `{module}` | refused ({error}) | |"


def main(arguments: Sequence[str]) -> None:
    """Print the table, and write it with ``--write``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks comfyui", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/comfyui.md")
    args = parser.parse_args(arguments)
    sys.path.append(str(ROOT / "tests"))
    from helpers import comfy_nodes, real_comfy
    from helpers.comfy_models import MODELS

    if real_comfy.path() is None:
        raise SystemExit("Set COMFYUI_PATH to the folder of a ComfyUI.")
    real_comfy.load()
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    from comfyui_version import __version__

    taken = ", ".join(f"{package} {value}" for package, value in versions().items())
    lines = HEAD.format(comfyui=__version__, versions=taken, steps=STEPS).splitlines()
    for line in lines:
        print(line)
    with comfy_nodes.loaded(), torch.inference_mode():
        for name in MODELS:
            lines.append(row(name))
            print(lines[-1], flush=True)
    if args.write:
        (RESULTS_DIR / "comfyui.md").write_text("\n".join(lines) + "\n")
