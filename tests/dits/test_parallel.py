"""Ranks compute together what one device computes, for attention over all tokens and prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from captured import analysed, captured_module
from dits.build import build
from dits.catalogue import CATALOGUE
from latte import assert_same
from lockstep import run_ranks
from pab_compile.passes.parallel.choose import candidates
from pab_compile.passes.parallel.layout import lay_out
from pab_compile.passes.parallel.localise import localise
from pab_compile.passes.parallel.shard import Ranks

# 3 frames of 4 x 6 tokens, or 24 tokens of a picture: not divisible by the ranks.
CASES = [
    ("cogvideox", "t", 2, {}),
    ("cogvideox", "s", 5, {"num_attention_heads": 5, "attention_head_dim": 16}),
    ("wan", "h", 3, {"num_attention_heads": 3}),
    ("flux", "s", 2, {}),
    ("hunyuan_video", "s", 2, {}),
    ("latte", "w", 3, {}),
]


@pytest.mark.parametrize(("name", "axis", "num_ranks", "config"), CASES)
def test_what_ranks_return_is_what_one_device_returns(
    name: str, axis: str, num_ranks: int, config: dict[str, Any]
) -> None:
    dit = CATALOGUE[name]
    dit = replace(dit, config={**dit.config, **config})
    model = captured_module(build(dit), **dit.inputs())
    program = analysed(model)
    axes = dict(candidates(program.inferred_axes))
    layout = lay_out(model.graph, program.inferred_axes, program.mixers, axes[axis], num_ranks)
    cross = {node for m in program.mixers if m.kind == "cross" for node in m.nodes}
    assert not any(cross.intersection(detour.verdicts) for detour in layout.detours)
    modules = [
        localise(model.graph_module, layout, Ranks(num_ranks, rank)).graph_module
        for rank in range(num_ranks)
    ]
    with torch.no_grad():
        for outputs in run_ranks(modules, model.args):
            assert_same(outputs[0], model.eager()[0])
