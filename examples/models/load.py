"""Load a released checkpoint, or say what does not fit.

    python -m examples.models.load open-sora model.safetensors
    python -m examples.models.load open-sora-plan-1.2 93x480p/ --save converted.safetensors

A checkpoint is a safetensors file, a torch file (read with `weights_only`, so it cannot run code),
or a folder with one or several of them. Exits with 1 if anything is missing, unexpected or of
another shape.
"""

from __future__ import annotations

import argparse
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from . import open_sora, open_sora_plan_1_1, open_sora_plan_1_2

MODELS: dict[str, Callable[[], nn.Module]] = {
    "open-sora": lambda: open_sora.STDiT3(open_sora.XL_2),
    "open-sora-plan-1.1": lambda: open_sora_plan_1_1.LatteT2V(open_sora_plan_1_1.V65X512X512),
    "open-sora-plan-1.2": lambda: open_sora_plan_1_2.OpenSoraT2V(open_sora_plan_1_2.V480P),
}

# What parameter names give away, the more particular first: all of them occur.
LOOKS = (
    ("LoRA weights", ("lora_",)),
    ("Open-Sora 1.2 (STDiT3)", ("spatial_blocks.0.cross_attn.", "temporal_blocks.0.cross_attn.")),
    ("Open-Sora 1.0 or 1.1 (STDiT)", ("blocks.0.attn_temp.",)),
    (
        "Open-Sora-Plan 1.1 (LatteT2V)",
        ("temporal_transformer_blocks.0.", "caption_projection.y_embedding"),
    ),
    ("Latte-1 of diffusers", ("temporal_transformer_blocks.0.",)),
    ("CogVideoX", ("patch_embed.text_proj.", "transformer_blocks.0.norm1.linear.")),
    ("a Flux or HunyuanVideo transformer", ("single_transformer_blocks.0.",)),
    ("Wan", ("condition_embedder.", "blocks.0.attn2.")),
    ("Open-Sora-Plan 1.2 or PixArt", ("transformer_blocks.0.attn2.", "adaln_single.", "proj_out.")),
    ("a text encoder (T5)", ("encoder.block.0.layer.0.",)),
    ("an autoencoder", ("encoder.", "decoder.")),
    ("a UNet (Stable Diffusion)", ("down_blocks.0.", "up_blocks.0.")),
)

_WRAPPERS = ("state_dict", "model", "module", "ema")
_MAX_LISTED = 8


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model."""


@dataclass(frozen=True)
class Fit:
    """How a state dict fits a model.

    Attributes:
        found: number of parameters and buffers that fit.
        missing: names that the model needs and the checkpoint lacks.
        unexpected: names that the model does not know.
        reshaped: name, shape in the model, shape in the checkpoint.
    """

    found: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def is_complete(self) -> bool:
        """Whether names and shapes all agree."""
        return not (self.missing or self.unexpected or self.reshaped)

    def __str__(self) -> str:
        """One paragraph per kind of disagreement."""
        lines = [f"{self.found} tensors fit"]
        lines += _listed("missing (the model needs them)", summarise_names(self.missing))
        lines += _listed("unexpected (the model has no such)", summarise_names(self.unexpected))
        shapes = [f"{name}: {got} where {want} is needed" for name, want, got in self.reshaped]
        lines += _listed("of another shape", shapes)
        return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint.

    Raises:
        CheckpointError: the file does not exist, holds more than tensors, or holds none.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    files = files or [
        f for suffix in ("bin", "pt", "pth") for f in sorted(path.glob(f"*.{suffix}"))
    ]
    if not files:
        raise CheckpointError(
            f"{path}: no such file, and no folder with .safetensors or .bin in it."
        )
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state |= _read_file(file)
    return state


def _read_file(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except Exception as error:
            raise CheckpointError(f"{file} is not a safetensors file: {error}") from error
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{file} cannot be read as weights ({reason}). Files that hold other objects than "
            "tensors could run code and are refused: save the state dict alone."
        ) from error
    while isinstance(content, Mapping) and not _is_state(content):
        inner = next((content[name] for name in _WRAPPERS if name in content), None)
        if inner is None:
            raise CheckpointError(
                f"{file} holds {', '.join(map(str, list(content)[:_MAX_LISTED]))} and no state "
                f"dict under any of the names {', '.join(_WRAPPERS)}."
            )
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a state dict.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _is_state(content: Mapping[object, object]) -> bool:
    tensors = (isinstance(value, torch.Tensor) for value in content.values())
    return bool(content) and all(tensors)


def compare(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Fit:
    """Compare names and shapes of a model and a state dict."""
    own = model.state_dict()
    shared = [name for name in own if name in state]
    reshaped = tuple(
        (name, tuple(own[name].shape), tuple(state[name].shape))
        for name in shared
        if own[name].shape != state[name].shape
    )
    return Fit(
        found=len(shared) - len(reshaped),
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        reshaped=reshaped,
    )


def looks_like(names: Sequence[str]) -> str | None:
    """The architecture that parameter names belong to, or None if they are of no known one."""
    for look, parts in LOOKS:
        if all(any(part in name for name in names) for part in parts):
            return look
    return None


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Fit:
    """Give a model the tensors of a state dict; it takes over their dtype.

    Args:
        model: may be on the `meta` device.
        state: names and tensors.

    Raises:
        CheckpointError: anything is missing, unexpected or of another shape; nothing was loaded.
    """
    fit = compare(model, state)
    if not fit.is_complete:
        mine, theirs = looks_like(list(model.state_dict())), looks_like(list(state))
        if theirs != mine:
            kind = f"looks like {theirs}" if theirs else "is of no architecture known here"
            names = ", ".join(list(state)[:3]) or "none"
            raise CheckpointError(
                f"This checkpoint {kind}, but the model is {mine or type(model).__name__}. "
                f"Its {len(state)} tensors are named: {names}, ..."
            )
        raise CheckpointError(f"The checkpoint does not fit {type(model).__name__}: {fit}")
    model.load_state_dict(dict(state), assign=True)
    return fit


def summarise_names(names: Sequence[str]) -> list[str]:
    """Names that differ only in their numbers, as one line with their count."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\.\d+\.", ".*.", name), []).append(name)
    return [
        members[0] if len(members) == 1 else f"{pattern} ({len(members)} tensors)"
        for pattern, members in groups.items()
    ]


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    more = [f"  ... and {len(entries) - _MAX_LISTED} more"] if len(entries) > _MAX_LISTED else []
    return [f"{title}:", *(f"  {entry}" for entry in entries[:_MAX_LISTED]), *more]


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a checkpoint and report."""
    parser = argparse.ArgumentParser(prog="python -m examples.models.load")
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--save", type=Path, help="write the weights as one safetensors file")
    args = parser.parse_args(arguments)
    with torch.device("meta"):
        model = MODELS[args.model]()
    try:
        state = read_checkpoint(args.checkpoint)
        fit = load_state(model, state)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 1
    num_parameters = sum(tensor.numel() for tensor in state.values())
    print(f"{args.model}: {fit}, {num_parameters / 1e9:.3f} billion numbers, nothing left over")
    if args.save is not None:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, args.save)
        print(f"wrote {args.save}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
