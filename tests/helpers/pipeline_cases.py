"""A real pipeline on several ranks, with guidance in two calls, with and without a generator."""

from __future__ import annotations

from argparse import Namespace

import torch
import torch.distributed as dist
import torchrun_pipeline as example

import pab_compile
from helpers.latte import compiled_pab
from helpers.world import Mesh

STEPS = 6
ARGS = Namespace(model=None, steps=STEPS, ranges="linear3", inner="eager")


def seeded(group: dist.ProcessGroup) -> tuple[str, torch.Tensor]:
    """Each half of the ranks computes one of the two calls.

    Returns:
        The error of a call without a generator, and then the latents of a call with one.
    """
    torch._dynamo.reset()
    pipe, error = example.tiny(), ""
    pipe.transformer = compiled_pab(pipe.transformer, ranges=ARGS.ranges, batch_mesh=Mesh(group))
    given = {
        **example.inputs_of(ARGS),
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    torch.seed()  # as in processes that seed nothing
    try:
        pipe(**given)
    except pab_compile.PabError as raised:
        error = f"{type(raised).__name__}: {raised}"
    return error, pipe(**given, generator=torch.Generator().manual_seed(0)).frames


def alone() -> torch.Tensor:
    """The latents of one process."""
    return example.generate(example.tiny(), ARGS, {})
