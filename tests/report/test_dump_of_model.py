"""Dumps of a whole compilation, as a user sees them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.latte import draw_latents, draw_prompt, tiny_latte
from pab_compile import explain

INPUTS = {
    "hidden_states": draw_latents(),
    "encoder_hidden_states": draw_prompt(),
    "timestep": torch.tensor([500]),
    "return_dict": False,
}


def test_a_compilation_leaves_every_pass_and_the_sites(tmp_path: Path) -> None:
    model = tiny_latte(depth=1)
    options = {"inner": "eager", "dump": str(tmp_path)}
    compiled = torch.compile(model, backend="pab", options=options)
    with torch.no_grad():
        compiled(**INPUTS)
    (written,) = tmp_path.iterdir()
    passes = ["axes", "binding", "classify", "sites", "broadcast", "pieces"]
    endings = ["after.txt", "before.txt", "diff"]
    wanted = {f"{i:02d}_{name}.{end}" for i, name in enumerate(passes, 1) for end in endings}
    assert {path.name for path in written.iterdir()} == wanted | {
        "sites.json",
        "sites.dot",
        "sites.svg",
    }
    assert "branch spatial_0" in (written / "05_broadcast.after.txt").read_text()
    assert "prelude" in (written / "06_pieces.diff").read_text()
    listed = json.loads((written / "sites.json").read_text())
    found = explain(model, options={"inner": "eager"}, **INPUTS)
    assert [site["name"] for site in listed] == [site.name for site in found.sites]
    assert {site["kind"] for site in listed} == {"spatial", "temporal", "cross", "mlp"}


@pytest.mark.long
def test_explain_dumps_what_it_looked_at(tmp_path: Path) -> None:
    explain(tiny_latte(depth=1), options={"dump": str(tmp_path)}, **INPUTS)
    (written,) = tmp_path.iterdir()
    assert (written / "04_sites.after.txt").exists()
    assert not (written / "05_broadcast.after.txt").exists()
