"""Moving digits: the data set, three small models that draw them, and a reader of the results.

A video is one of scikit-learn's 8x8 handwritten digits that bounces through a 16x16 picture for
8 frames. The prompt is the digit. It enters the model as a few tokens of a fixed table, whose row
10 stands for "no prompt" (classifier-free guidance, Ho & Salimans 2022).

There are three models, of two architectures from diffusers:

- `latte`, a `LatteTransformer3DModel` (Latte, Ma et al. 2024): spatial and temporal blocks take
  turns, cross-attention to the prompt in the spatial ones;
- `joint`, a `CogVideoXTransformer3DModel` (CogVideoX, Yang et al. 2024): every block attends over
  all patches of all frames and the prompt in one sequence;
- `deep`, which is like `joint`, but deeper (12 blocks), narrower, and with larger patches.

All are trained alike, as a rectified flow (Liu et al. 2022): at noise level s in [0, 1] a model
sees `(1 - s) * video + s * noise` with timestep `1000 * s` and predicts `noise - video`, which is
what diffusers' `FlowMatchEulerDiscreteScheduler` integrates.

Limits: grey pictures, one digit per video, square pictures without a background.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    LatteTransformer3DModel,
    ModelMixin,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.svm import SVC

NUM_FRAMES = 8
SIZE = 16
DIGIT_SIZE = 8
NUM_DIGITS = 10
NO_PROMPT = 10
PROMPT_TOKENS = 4
PROMPT_WIDTH = 32
TRAIN_IMAGES = 1500
MAX_SPEED = 1.2
HEADS = 4
HEAD_WIDTH = 32
PATCH_FRAMES = 2
MODEL_DIR = Path(__file__).parent / "digits_latte"


@dataclass(frozen=True)
class MovingDigits:
    """A source of endless random videos of one bouncing digit each.

    Attributes:
        images: `[n, 8, 8]`, ink between 0 and 1.
        labels: `[n]`, the digit of each image.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def sample(
        self, num_videos: int, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws videos `[n, 1, frames, 16, 16]` between -1 and 1, and their digits `[n]`."""
        chosen = torch.randint(len(self.images), (num_videos,), generator=generator)
        return self.render(chosen, generator), self.labels[chosen]

    def render(self, chosen: torch.Tensor, generator: torch.Generator | None = None):
        """Draws one video for each index in `chosen`, each on a random path."""
        num_videos, room = len(chosen), SIZE - DIGIT_SIZE
        start = torch.rand(num_videos, 1, 2, generator=generator) * room
        speed = (torch.rand(num_videos, 1, 2, generator=generator) * 2 - 1) * MAX_SPEED
        path = (start + speed * torch.arange(NUM_FRAMES).view(1, -1, 1)) % (2 * room)
        corner = (room - (path - room).abs()).round().long()
        offset = torch.arange(DIGIT_SIZE)
        rows = corner[..., 0, None, None] + offset.view(1, 1, -1, 1)
        cols = corner[..., 1, None, None] + offset.view(1, 1, 1, -1)
        video = torch.arange(num_videos).view(-1, 1, 1, 1)
        frame = torch.arange(NUM_FRAMES).view(1, -1, 1, 1)
        videos = torch.full((num_videos, NUM_FRAMES, SIZE, SIZE), -1.0)
        videos[video, frame, rows, cols] = self.images[chosen].unsqueeze(1) * 2 - 1
        return videos.unsqueeze(1)


def load_digit_images(held_out: bool = False) -> MovingDigits:
    """Loads scikit-learn's digits: the first 1500 to train on, or the 297 held out."""
    data = load_digits()
    part = slice(TRAIN_IMAGES, None) if held_out else slice(TRAIN_IMAGES)
    images = torch.tensor(data.images[part], dtype=torch.float32) / 16
    return MovingDigits(images, torch.tensor(data.target[part], dtype=torch.long))


def make_prompt_table(seed: int = 0) -> torch.Tensor:
    """Draws the fixed prompt embeddings `[11, tokens, width]`; row 10 stands for no prompt."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_DIGITS + 1, PROMPT_TOKENS, PROMPT_WIDTH, generator=generator)


def latte_inputs(video: torch.Tensor) -> dict[str, object]:
    """Returns the arguments in which `video` enters Latte."""
    return {"hidden_states": video}


def joint_inputs(video: torch.Tensor, patch_size: int = 2) -> dict[str, object]:
    """Returns the arguments in which `video` enters CogVideoX: frames first, and positions."""
    frames, side = video.shape[2] // PATCH_FRAMES, video.shape[-1] // patch_size
    positions = patch_positions(frames, side)
    return {"hidden_states": video.transpose(1, 2), "image_rotary_emb": positions}


@functools.cache
def patch_positions(frames: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cosine and sine `[patches, head width]` of the rotary embedding of all patches.

    Args:
        frames: patches along the frames.
        side: patches along the height, and along the width.
    """
    grid = {"grid_size": (side, side), "max_size": (side, side), "grid_type": "slice"}
    return get_3d_rotary_pos_embed(HEAD_WIDTH, None, temporal_size=frames, **grid)


@dataclass(frozen=True)
class Family:
    """An architecture: how its model is built and called.

    Attributes:
        cls: its class in diffusers.
        config: what the class is built with.
        inputs: the arguments in which a video `[n, 1, frames, 16, 16]` enters the model.
        frames_dim: dimension of the frames in what the model returns.
        folder: where the trained model is.
        kept: type of the weights in its file.
    """

    cls: type[ModelMixin]
    config: dict[str, object]
    inputs: Callable[[torch.Tensor], dict[str, object]]
    frames_dim: int
    folder: Path
    kept: torch.dtype = torch.float32

    def arguments(
        self, video: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> dict[str, object]:
        """Returns the keyword arguments of one model call.

        Args:
            video: `[n, 1, frames, 16, 16]`, noisy.
            timestep: `[n]`, 1000 times the noise level.
            prompt: `[n, tokens, width]`.
        """
        rest = {"timestep": timestep, "encoder_hidden_states": prompt, "return_dict": False}
        return {**self.inputs(video), **rest}

    def velocity(
        self,
        model: Callable[..., tuple[torch.Tensor, ...]],
        video: torch.Tensor,
        timestep: torch.Tensor,
        prompt: torch.Tensor,
    ) -> torch.Tensor:
        """Calls the model and returns the velocity `[n, 1, frames, 16, 16]` (see `arguments`)."""
        return model(**self.arguments(video, timestep, prompt))[0].transpose(2, self.frames_dim)


SHAPE = {
    "patch_size": 2,
    "in_channels": 1,
    "out_channels": 1,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
}
JOINT_SHAPE = SHAPE | {
    "sample_width": SIZE,
    "sample_height": SIZE,
    "sample_frames": NUM_FRAMES,
    "temporal_compression_ratio": 1,
    "patch_size_t": PATCH_FRAMES,
    "time_embed_dim": 64,
    "text_embed_dim": PROMPT_WIDTH,
    "max_text_seq_length": PROMPT_TOKENS,
    "use_rotary_positional_embeddings": True,
}
FAMILIES = {
    "latte": Family(
        LatteTransformer3DModel,
        # 3 spatial and 3 temporal blocks.
        SHAPE
        | {
            "sample_size": SIZE,
            "video_length": NUM_FRAMES,
            "num_layers": 3,
            "cross_attention_dim": HEADS * HEAD_WIDTH,
            "caption_channels": PROMPT_WIDTH,
            "attention_bias": True,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
        },
        latte_inputs,
        frames_dim=2,
        folder=MODEL_DIR,
    ),
    "joint": Family(
        CogVideoXTransformer3DModel,
        # 4 blocks; a patch is two pixels wide and high and two frames long.
        JOINT_SHAPE | {"num_layers": 4},
        joint_inputs,
        frames_dim=1,
        folder=MODEL_DIR.with_name("digits_joint"),
    ),
    "deep": Family(
        CogVideoXTransformer3DModel,
        # 12 blocks; a patch is four pixels wide and high and two frames long.
        JOINT_SHAPE | {"num_layers": 12, "num_attention_heads": 3, "patch_size": 4},
        functools.partial(joint_inputs, patch_size=4),
        frames_dim=1,
        folder=MODEL_DIR.with_name("digits_deep"),
        kept=torch.bfloat16,
    ),
}


def find_folder(model: str) -> Path:
    """Returns the folder of a model that is named by its family or by its path."""
    return FAMILIES[model].folder if model in FAMILIES else Path(model)


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Builds the Euler sampler for the time convention of this file."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


@dataclass(frozen=True)
class DigitsModel:
    """A trained model with all that is needed to sample from it.

    Attributes:
        model: the transformer, in evaluation mode.
        family: how it is called.
        prompts: `[11, tokens, width]`, one row per digit and one for no prompt.
        scheduler: the sampler the model was trained for.
    """

    model: ModelMixin
    family: Family
    prompts: torch.Tensor
    scheduler: FlowMatchEulerDiscreteScheduler

    def embed(self, digits: torch.Tensor) -> torch.Tensor:
        """Returns the prompt embeddings `[2 n, tokens, width]` of one [uncond, cond] batch."""
        return torch.cat([self.prompts[torch.full_like(digits, NO_PROMPT)], self.prompts[digits]])

    def example_inputs(self, num_videos: int = 1) -> dict[str, object]:
        """Returns keyword arguments of one model call for `num_videos` videos with guidance."""
        video = make_noise(num_videos).repeat(2, 1, 1, 1, 1)
        prompt = self.embed(torch.arange(num_videos) % NUM_DIGITS)
        return self.family.arguments(video, torch.full((len(video),), 1000.0), prompt)


def find_family(cls: str, config: dict[str, object]) -> Family:
    """Returns the family that builds models of the class ``cls`` with this configuration."""
    return next(
        family
        for family in FAMILIES.values()
        if family.cls.__name__ == cls and family.config.items() <= config.items()
    )


def save(path: Path, model: ModelMixin, prompts: torch.Tensor) -> None:
    """Writes model, prompt table and scheduler to the folder `path`, weights as safetensors."""
    path.mkdir(parents=True, exist_ok=True)
    family = find_family(type(model).__name__, dict(model.config))
    kept = torch.nn.Module.to(copy.deepcopy(model), family.kept)
    kept.save_pretrained(path / "transformer", safe_serialization=True)
    make_scheduler().save_pretrained(path / "scheduler")
    save_file({"prompts": prompts.contiguous()}, path / "prompts.safetensors")


def load(path: Path = MODEL_DIR) -> DigitsModel:
    """Loads what `save` wrote.

    Raises:
        FileNotFoundError: if there is no trained model in `path`.
    """
    if not (path / "prompts.safetensors").is_file():
        raise FileNotFoundError(f"no trained model in {path}; run examples/train_digits.py first")
    config = json.loads((path / "transformer" / "config.json").read_text())
    family = find_family(config["_class_name"], config)
    model = family.cls.from_pretrained(path / "transformer").float().eval()
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(path / "scheduler")
    return DigitsModel(model, family, load_file(path / "prompts.safetensors")["prompts"], scheduler)


def make_noise(num_videos: int, seed: int = 0) -> torch.Tensor:
    """Draws the starting noise `[n, 1, frames, 16, 16]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_videos, 1, NUM_FRAMES, SIZE, SIZE, generator=generator)


@torch.no_grad()
def generate(
    trained: DigitsModel,
    digits: torch.Tensor,
    noise: torch.Tensor,
    *,
    model: Callable[..., tuple[torch.Tensor, ...]] | None = None,
    num_steps: int = 30,
    guidance: float = 2.0,
    on_step: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Generates one video per prompt with classifier-free guidance in one batched call per step.

    Args:
        trained: the trained model.
        digits: `[n]`, the prompts.
        noise: `[n, 1, frames, 16, 16]`, the starting noise.
        model: what to call in place of `trained.model`, such as a compiled version of it.
        num_steps: number of sampling steps.
        guidance: guidance scale; 1 follows the prompt alone.
        on_step: called after every step.

    Returns:
        Videos `[n, 1, frames, 16, 16]`, clamped to -1 ... 1.
    """
    model = trained.model if model is None else model
    embeddings, scheduler = trained.embed(digits), trained.scheduler
    # Evenly spaced noise levels 1, 1 - 1/n, ..., 1/n; the scheduler appends the 0 at the end.
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / num_steps, num_steps).tolist())
    video = noise
    for t in scheduler.timesteps:
        both = torch.cat([video, video])
        velocity = trained.family.velocity(model, both, t.expand(len(both)), embeddings)
        free, prompted = velocity.chunk(2)
        velocity = free + guidance * (prompted - free)
        video = scheduler.step(velocity, t, video).prev_sample
        on_step()
    return video.clamp(-1, 1)


@dataclass(frozen=True)
class Reader:
    """Reads the digit in a video: a support vector machine per frame, then the majority.

    Attributes:
        classifier: classifies 8x8 windows.
        held_out_accuracy: share of clean videos of held-out digits that it reads correctly.
    """

    classifier: SVC
    held_out_accuracy: float

    def read(self, videos: torch.Tensor) -> torch.Tensor:
        """Returns the digit `[n]` it sees in each of the videos `[n, 1, frames, 16, 16]`."""
        frames = self.classifier.predict(cut_windows(videos)).reshape(len(videos), -1)
        votes = (frames[:, :, None] == np.arange(NUM_DIGITS)).sum(axis=1)
        return torch.from_numpy(votes.argmax(axis=1))


def cut_windows(videos: torch.Tensor) -> np.ndarray:
    """Cuts the 8x8 window with the most ink out of every frame: `[n * frames, 64]`."""
    ink = (videos.clamp(-1, 1) + 1).flatten(0, 2) / 2
    windows = ink.unfold(1, DIGIT_SIZE, 1).unfold(2, DIGIT_SIZE, 1).flatten(3).flatten(1, 2)
    best = windows.sum(dim=-1).argmax(dim=1)
    return windows[torch.arange(len(ink)), best].numpy()


def train_reader() -> Reader:
    """Trains the reader on videos of the 1500 training digits (seconds) and tests it on the rest.

    The windows it learns from are cut the way `Reader.read` cuts them, so that a digit that is
    narrower than its window appears at every offset that the cut can give it.
    """
    generator = torch.Generator().manual_seed(1)
    train, held_out = load_digit_images(), load_digit_images(held_out=True)
    videos = train.render(torch.arange(len(train.images)), generator)[:, :, ::4]
    labels = train.labels.repeat_interleave(videos.shape[2])
    classifier = SVC(gamma=0.2, C=10).fit(cut_windows(videos), labels.numpy())
    reader = Reader(classifier, 0.0)
    test = held_out.render(torch.arange(len(held_out.images)), generator)
    accuracy = (reader.read(test) == held_out.labels).double().mean().item()
    return Reader(classifier, accuracy)


def read_digit(videos: torch.Tensor, reader: Reader | None = None) -> torch.Tensor:
    """Returns the digit `[n]` in each video, read by `reader` or by a newly trained one."""
    return (reader or train_reader()).read(videos)
