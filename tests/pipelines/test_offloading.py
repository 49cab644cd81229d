"""``enable`` on whole pipelines whose transformer is offloaded layer by layer, against hooks."""

from __future__ import annotations

from collections.abc import Callable

import accelerate
import pytest
import torch

import pab_compile
from helpers.latte import assert_same

from .catalogue import CASES
from .observe import NUM_STEPS, OPTIONS, by_steps, generate

CPU = torch.device("cpu")


def offload_blocks(model: torch.nn.Module) -> None:
    model.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_in_sequence(model: torch.nn.Module) -> None:
    accelerate.cpu_offload(model, CPU)


@pytest.mark.long
@pytest.mark.parametrize("offload", [offload_blocks, offload_in_sequence])
@pytest.mark.parametrize("name", ["CogVideoX", "Wan"])
def test_a_pipeline_with_an_offloaded_transformer_gives_what_module_hooks_give(
    name: str, offload: Callable[[torch.nn.Module], None]
) -> None:
    case = CASES[name]
    pipe = case.build()
    eager = case.generate(case.build(), NUM_STEPS)
    offload(pipe.transformer)
    handle = pab_compile.enable(pipe, options={**OPTIONS, **case.dit.options})
    found = generate(case, pipe, by_steps(case))
    assert_same(found.actual, found.expected)
    assert not torch.equal(found.actual, eager)
    assert {kind: n for kind, n in found.stats.reused.items() if n} == dict(found.oracle.reused)
    assert found.stats.notes == ()
    handle.disable()
    assert torch.equal(case.generate(pipe, NUM_STEPS), eager)
