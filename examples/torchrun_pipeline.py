"""A pipeline of diffusers on several processes: guidance in two calls, tokens, one writer.

    torchrun --nproc-per-node 2 examples/torchrun_pipeline.py

Every process calls the same pipeline. With an even number of processes, each half of them computes
one of the two calls of guidance; the processes of a half share the tokens. The first process alone
decodes the video and writes it. It works with one process too, without torchrun.

The pipeline is a Wan with a tiny transformer and decoder of random weights. `--model FOLDER` loads
released weights instead, with a prompt; this was not tried here. With CUDA the processes take one
device each and exchange over NCCL, which was not tried either. `--check` generates once more on the
first process alone, and exits with 1 if the videos differ.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.utils import export_to_gif

TOLERANCE = 1e-4  # of the largest value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a released WanPipeline")
    parser.add_argument("--prompt", default="a hedgehog in the snow", help="with --model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ranges", default="linear3", help="a preset of pab_compile")
    parser.add_argument("--inner", default="eager", help="compiler of the pieces, or inductor")
    parser.add_argument("--output", type=Path, default=Path("outputs/torchrun_pipeline.gif"))
    parser.add_argument("--check", action="store_true", help="compare with one process")
    args = parser.parse_args()
    is_started = "RANK" in os.environ  # by torchrun
    on_gpu = torch.cuda.is_available()
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if is_started:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        return run(args, device)
    finally:
        if is_started:
            dist.destroy_process_group()


def run(args: argparse.Namespace, device: torch.device) -> int:
    """What every process does."""
    size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    pipe = (load(args.model) if args.model else tiny()).to(device)
    latents = generate(pipe, args, parallel_options(size))
    status = 0
    if rank == 0:  # the others have the same latents
        if args.check:
            alone = generate(pipe, args, {})
            error = ((alone - latents).abs().max() / alone.abs().max()).item()
            print(f"largest difference to one process: {error:.1e} of the largest value")
            status = int(error > TOLERANCE)
        frames = decode(pipe, latents)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        export_to_gif(frames, str(args.output))
        print(f"{size} process(es) made {args.output}, {len(frames)} frames")
    if size > 1:
        dist.barrier()  # whoever ends first would close the connections of the others
    return status


def parallel_options(size: int) -> dict[str, Any]:
    """How so many processes share a generation with two calls per step."""
    halves = {"batch_parallel": 2} if size % 2 == 0 else {}
    in_half = size // 2 if halves else size
    return {**halves, **({"sequence_parallel": in_half} if in_half > 1 else {})}


def generate(pipe: Any, args: argparse.Namespace, options: dict[str, Any]) -> torch.Tensor:
    """The latents of a video, the same in every process."""
    bare = getattr(pipe.transformer, "_orig_mod", pipe.transformer)
    given = {"ranges": args.ranges, "inner": args.inner, **options}
    pipe.transformer = torch.compile(bare, backend="pab", options=given)
    return pipe(
        **inputs_of(args),
        num_inference_steps=args.steps,
        # Without it torch would seed each process differently, and their videos would differ.
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="latent",  # so that not every process decodes
    ).frames


def decode(pipe: Any, latents: torch.Tensor) -> Any:
    """The frames of a video, as the pipeline itself would decode them."""
    vae = pipe.vae
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        video = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
    return pipe.video_processor.postprocess_video(video, output_type="pil")[0]


def inputs_of(args: argparse.Namespace) -> dict[str, Any]:
    """What the pipeline is given, besides steps and generator."""
    if args.model:
        return {"prompt": args.prompt}
    draw = torch.Generator().manual_seed(1)
    prompt, negative = torch.randn(2, 1, 6, 16, generator=draw)
    return {
        "prompt_embeds": prompt,
        "negative_prompt_embeds": negative,
        "height": 32,
        "width": 32,
        "num_frames": 9,
    }


def load(folder: Path) -> Any:
    """A released pipeline."""
    return WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)


def tiny() -> Any:
    """A pipeline of random weights, the same in every process."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=16,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    vae = AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    parts: dict[str, Any] = {
        "tokenizer": None,
        "text_encoder": None,
        "vae": vae.eval(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True
        ),
        "transformer": transformer.eval(),
    }
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


if __name__ == "__main__":
    sys.exit(main())
