"""Modular pipelines of diffusers: blocks and a guider call the transformer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep

import pab_compile

from .case import embeddings, noise
from .catalogue import CASES
from .parts import VIDEO

NUM_STEPS = 12
WHOLE = CASES["Wan"]


def modular(pipe: Any, guider: Any) -> Any:
    """The blocks that denoise, with the transformer and the scheduler of a pipeline."""
    blocks = WanCoreDenoiseStep().init_pipeline()
    blocks.update_components(transformer=pipe.transformer, scheduler=pipe.scheduler, guider=guider)
    blocks.set_progress_bar_config(disable=True)
    return blocks


def generate(blocks: Any) -> torch.Tensor:
    return blocks(
        num_inference_steps=NUM_STEPS,
        latents=noise(1, 4, 3, 8, 12, seed=5),
        output="latents",
        **VIDEO,
        **embeddings(20),
    )


@pytest.mark.parametrize("guider", [ClassifierFreeGuidance, AdaptiveProjectedGuidance])
def test_calls_of_a_guider_reuse_their_own_outputs(guider: Any) -> None:
    pipe = WHOLE.build()
    blocks = modular(pipe, guider(guidance_scale=5.0))
    with torch.no_grad(), WHOLE.dit.switched():
        eager = generate(blocks)
        handle = pab_compile.enable(blocks, "pab246", inner="eager")
        actual, seen = generate(blocks), handle.stats()["transformer"]
        with handle.disabled():
            after = generate(blocks)
    assert torch.equal(after, eager)
    assert not torch.equal(actual, eager)
    assert seen.notes == ()
    assert (seen.steps, seen.calls, seen.lanes) == (NUM_STEPS, 2 * NUM_STEPS, 2)
    assert min(seen.reused["full"], seen.reused["cross"]) > NUM_STEPS


def test_the_first_step_is_left_out_of_predictions_and_this_is_said() -> None:
    """A block that has the schedule in sight calls the model, and ends at every step."""
    blocks = modular(WHOLE.build(), ClassifierFreeGuidance(guidance_scale=5.0))
    with torch.no_grad(), WHOLE.dit.switched():
        handle = pab_compile.enable(blocks, "linear3", inner="eager")
        generate(blocks)
    seen = handle.stats()["transformer"]
    assert set(seen.timeline.strips()) == {"CC-CppCppCpp"}
    (note,) = seen.notes
    assert note.startswith("the outputs of the first step were not reused")


def test_blocks_give_what_the_pipeline_gives() -> None:
    pipe = WHOLE.build()
    blocks = modular(pipe, ClassifierFreeGuidance(guidance_scale=5.0))
    results = []
    with torch.no_grad(), WHOLE.dit.switched():
        handle = pab_compile.enable(blocks, "pab246", inner="eager")
        results.append(generate(blocks))
        handle.disable()
        pab_compile.enable(pipe, "pab246", inner="eager")
        results.append(WHOLE.generate(pipe, NUM_STEPS, latents=noise(1, 4, 3, 8, 12, seed=5)))
    assert torch.equal(*results)
