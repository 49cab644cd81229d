"""Every attention of every DiT is found and reused as by module hooks; else the DiT is itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import pab_compile
from helpers.latte import assert_different, assert_same

from .build import Denoising, build, run
from .catalogue import CATALOGUE
from .oracle import RANGES, WINDOW, Oracle
from .spec import WHAT_MODELS_WARN_OF, Dit
from .truth import assert_found, observe

NUM_STEPS = 10
pytestmark = WHAT_MODELS_WARN_OF
# One configuration of every class runs at its second size, where numbers of rows and columns equal
# other sizes, the others at the usual one. One of every family runs at both, one after the other,
# here or in test_sizes: forwards of one graph and of several, attention of every mechanism.
FIRST_OF_CLASS = {dit.cls: name for name, dit in reversed(CATALOGUE.items())}
AT_BOTH_SIZES = (
    *("minimax_h3", "ltx", "hunyuan_video_15", "mochi", "cosmos3", "flux"),
    *("sd3", "sana", "lumina2", "t5_film", "protein"),
)
DITS = [pytest.param(dit, id=name) for name, dit in CATALOGUE.items() if not dit.unsupported]


@pytest.mark.sample("latte", "sd3", "sana_video")
@pytest.mark.parametrize("dit", DITS)
def test_what_is_found_is_what_runs_and_ten_steps_are_those_of_module_hooks(dit: Dit) -> None:
    model = build(dit)
    sizes = [{}] if dit.name in AT_BOTH_SIZES or FIRST_OF_CLASS[dit.cls] != dit.name else []
    sizes += [dit.sizes] if FIRST_OF_CLASS[dit.cls] == dit.name else []
    loops = [Denoising(dit, NUM_STEPS, **size) for size in sizes]
    # Before compiling: some models make tables at their first call, which Dynamo cannot trace.
    truth = observe(model, dit, **dit.inputs())
    eager = [loop.run(model) for loop in loops]
    options = {"inner": "eager", "ranges": RANGES, "window": WINDOW, **dit.options}
    compiled = torch.compile(
        model, backend="pab", fullgraph=dit.graphs == 1, dynamic=False, options=options
    )
    actual, reused = [], []
    for loop in loops:
        with dit.switched():
            actual.append(_generate(compiled, loop))
        reused.append({kind: n for kind, n in pab_compile.stats(compiled).reused.items() if n})
        assert_found(pab_compile.explain(compiled), truth, dit)

    for loop, computed, ours, theirs in zip(loops, reused, actual, eager, strict=True):
        oracle = Oracle(model, dit)
        for step in range(NUM_STEPS):
            expected = oracle(step, NUM_STEPS, **loop.at(step))
            for one, other in zip(ours[step], expected, strict=True):
                assert_same(one, other)
            if not oracle.reused or all(step % number == 0 for number in RANGES.values()):
                pairs = zip(ours[step], theirs[step], strict=True)
                assert all(torch.equal(one, other) for one, other in pairs), "not eager's bits"
        oracle.remove()
        assert computed == dict(oracle.reused)
        if RANGES.keys() & {kind for _, kind in dit.kinds}:
            assert_different(*(torch.stack([step[0] for step in way]) for way in (theirs, ours)))


def _generate(compiled: Any, loop: Denoising) -> list[tuple[torch.Tensor, ...]]:
    """All steps of a loop, the first of which compiles all that will be needed."""
    outputs = []
    for step in range(NUM_STEPS):
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            outputs.append(run(compiled, **loop.at(step)))
    return outputs
