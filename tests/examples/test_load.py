"""Checkpoints: names and shapes as published, and what does not fit is said.

The lists below are written after the published sources (hpcaitech/Open-Sora v1.2 and
PKU-YuanGroup/Open-Sora-Plan v1.1.0 and v1.2.0), not after this repository's modules.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.load import CheckpointError, compare, load_state, looks_like, read_checkpoint
from safetensors.torch import save_file

from helpers.latte import draw_latents
from models import load, open_sora, open_sora_plan_1_1, open_sora_plan_1_2

from .tiny import NAMES, SIZE, build

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}


def stdit3(depth: int, dim: int, heads: int, caption: int, tokens: int) -> Shapes:
    shapes: Shapes = {
        "rope.freqs": (dim // heads // 2,),
        "x_embedder.proj.weight": (dim, 4, 1, 2, 2),
        "x_embedder.proj.bias": (dim,),
        **linear("t_embedder.mlp.0", dim, 256),
        **linear("t_embedder.mlp.2", dim, dim),
        **linear("fps_embedder.mlp.0", dim, 256),
        **linear("fps_embedder.mlp.2", dim, dim),
        **linear("t_block.1", 6 * dim, dim),
        "y_embedder.y_embedding": (tokens, caption),
        **linear("y_embedder.y_proj.fc1", dim, caption),
        **linear("y_embedder.y_proj.fc2", dim, dim),
        "final_layer.scale_shift_table": (2, dim),
        **linear("final_layer.linear", 2 * 2 * 8, dim),
    }
    for kind in ("spatial", "temporal"):
        for i in range(depth):
            block = f"{kind}_blocks.{i}"
            shapes |= {
                f"{block}.scale_shift_table": (6, dim),
                **linear(f"{block}.attn.qkv", 3 * dim, dim),
                f"{block}.attn.q_norm.weight": (dim // heads,),
                f"{block}.attn.k_norm.weight": (dim // heads,),
                **linear(f"{block}.attn.proj", dim, dim),
                **linear(f"{block}.cross_attn.q_linear", dim, dim),
                **linear(f"{block}.cross_attn.kv_linear", 2 * dim, dim),
                **linear(f"{block}.cross_attn.proj", dim, dim),
                **linear(f"{block}.mlp.fc1", 4 * dim, dim),
                **linear(f"{block}.mlp.fc2", dim, 4 * dim),
            }
    return shapes


def pixart(dim: int, caption: int, out: int) -> Shapes:
    return {
        "pos_embed.proj.weight": (dim, 4, 2, 2),
        "pos_embed.proj.bias": (dim,),
        **linear("adaln_single.emb.timestep_embedder.linear_1", dim, 256),
        **linear("adaln_single.emb.timestep_embedder.linear_2", dim, dim),
        **linear("adaln_single.linear", 6 * dim, dim),
        **linear("caption_projection.linear_1", dim, caption),
        **linear("caption_projection.linear_2", dim, dim),
        "scale_shift_table": (2, dim),
        **linear("proj_out", 2 * 2 * out, dim),
    }


def pixart_block(block: str, dim: int, attentions: tuple[str, ...]) -> Shapes:
    shapes: Shapes = {f"{block}.scale_shift_table": (6, dim)}
    for attention in attentions:
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= linear(f"{block}.{attention}.{part}", dim, dim)
    shapes |= linear(f"{block}.ff.net.0.proj", 4 * dim, dim)
    return shapes | linear(f"{block}.ff.net.2", dim, 4 * dim)


def plan_1_1(depth: int, dim: int, caption: int, tokens: int) -> Shapes:
    shapes = pixart(dim, caption, out=8) | {"caption_projection.y_embedding": (tokens, caption)}
    for i in range(depth):
        shapes |= pixart_block(f"transformer_blocks.{i}", dim, ("attn1", "attn2"))
        shapes |= pixart_block(f"temporal_transformer_blocks.{i}", dim, ("attn1",))
    return shapes


def plan_1_2(depth: int, dim: int, caption: int) -> Shapes:
    shapes = pixart(dim, caption, out=4)
    for i in range(depth):
        shapes |= pixart_block(f"transformer_blocks.{i}", dim, ("attn1", "attn2"))
    return shapes


TINY = {
    "open-sora": stdit3(2, 16, 2, 12, 5),
    "open-sora-plan-1.1": plan_1_1(2, 16, 12, 3),
    "open-sora-plan-1.2": plan_1_2(2, 24, 12),
}
PUBLISHED = {
    "open-sora": stdit3(28, 1152, 16, 4096, 300),
    "open-sora-plan-1.1": plan_1_1(28, 1152, 4096, 120),
    "open-sora-plan-1.2": plan_1_2(32, 2304, 4096),
}
CLASSES = {
    "open-sora": (open_sora.STDiT3, open_sora.XL_2),
    "open-sora-plan-1.1": (open_sora_plan_1_1.LatteT2V, open_sora_plan_1_1.V65X512X512),
    "open-sora-plan-1.2": (open_sora_plan_1_2.OpenSoraT2V, open_sora_plan_1_2.V480P),
}
LOOKS = {
    "open-sora": "Open-Sora 1.2 (STDiT3)",
    "open-sora-plan-1.1": "Open-Sora-Plan 1.1 (LatteT2V)",
    "open-sora-plan-1.2": "Open-Sora-Plan 1.2 or PixArt",
}


def made_up(shapes: Shapes) -> dict[str, torch.Tensor]:
    """A state dict with these names and shapes; no two tensors are alike."""
    generator = torch.Generator().manual_seed(11)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_those_of_the_published_checkpoints(name: str) -> None:
    assert shapes_of(build(name)) == TINY[name]
    kind, config = CLASSES[name]
    with torch.device("meta"):
        assert shapes_of(kind(config)) == PUBLISHED[name]  # type: ignore[arg-type]
        assert shapes_of(load.MODELS[name]()) == PUBLISHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_of_a_checkpoint_end_up_in_the_model(name: str, tmp_path: Path) -> None:
    state = made_up(TINY[name])
    save_file(state, tmp_path / "model.safetensors")
    model = build(name)
    fit = load_state(model, read_checkpoint(tmp_path / "model.safetensors"))
    assert fit.is_complete
    assert fit.found == len(state)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key


def test_a_model_described_on_meta_runs_after_loading() -> None:
    state = {name: t.to(torch.bfloat16) for name, t in made_up(TINY["open-sora"]).items()}
    with torch.device("meta"):
        model = open_sora.STDiT3(open_sora.TINY)
    load_state(model, state)
    with torch.no_grad():
        prompt = torch.randn(1, 1, 5, 12)
        found = model(draw_latents(), torch.tensor([500.0]), prompt, **SIZE)
    assert found.device.type == "cpu"
    assert found.isfinite().all()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module", "ema"])
def test_torch_files_are_read_with_and_without_a_wrapper(
    wrapper: str | None, tmp_path: Path
) -> None:
    state = made_up(TINY["open-sora"])
    content: object = state
    if wrapper is not None:
        content = {wrapper: {f"module.{name}": t for name, t in state.items()}, "step": 7}
    torch.save(content, tmp_path / "ema.pt")
    assert read_checkpoint(tmp_path / "ema.pt").keys() == state.keys()


def test_the_parts_of_a_folder_are_put_together(tmp_path: Path) -> None:
    state = made_up(TINY["open-sora"])
    names = sorted(state)
    save_file({name: state[name] for name in names[:9]}, tmp_path / "m-1-of-2.safetensors")
    save_file({name: state[name] for name in names[9:]}, tmp_path / "m-2-of-2.safetensors")
    assert read_checkpoint(tmp_path).keys() == state.keys()


def test_what_is_missing_unexpected_or_of_another_shape_is_listed() -> None:
    state = made_up(TINY["open-sora"])
    for block in (0, 1):
        del state[f"spatial_blocks.{block}.mlp.fc1.bias"]
    state["spatial_blocks.0.attn.rotary.freqs"] = torch.ones(3)
    state["t_block.1.bias"] = torch.ones(5)
    model = build("open-sora")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        load_state(model, state)
    message = str(refused.value)
    assert "does not fit STDiT3" in message
    assert "missing (the model needs them):\n  spatial_blocks.*.mlp.fc1.bias (2 tensors)" in message
    assert "unexpected (the model has no such):\n  spatial_blocks.0.attn.rotary.freqs" in message
    assert "of another shape:\n  t_block.1.bias: (5,) where (96,) is needed" in message
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    fit = compare(model, state)
    assert (len(fit.missing), len(fit.unexpected), len(fit.reshaped)) == (2, 1, 1)


def test_long_lists_are_cut() -> None:
    message = str(compare(build("open-sora"), {}))
    assert message.startswith("0 tensors fit\nmissing (the model needs them):\n  rope.freqs\n")
    assert "  ... and" in message
    assert len(message.splitlines()) < 15


def named_like(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(1) for name in names}


OTHERS = {
    **{LOOKS[name]: made_up(TINY[name]) for name in NAMES},
    "Open-Sora 1.0 or 1.1 (STDiT)": named_like(
        "blocks.0.attn_temp.qkv.weight", "blocks.0.cross_attn.q_linear.weight"
    ),
    "Latte-1 of diffusers": {
        name: tensor
        for name, tensor in made_up(TINY["open-sora-plan-1.1"]).items()
        if "y_embedding" not in name
    },
    "CogVideoX": named_like(
        "patch_embed.text_proj.weight", "transformer_blocks.0.norm1.linear.weight"
    ),
    "a Flux or HunyuanVideo transformer": named_like("single_transformer_blocks.0.proj_mlp.weight"),
    "Wan": named_like("condition_embedder.time_proj.weight", "blocks.0.attn2.to_q.weight"),
    "an autoencoder": named_like("encoder.down_blocks.0.x", "decoder.up_blocks.0.x"),
    "a UNet (Stable Diffusion)": named_like("down_blocks.0.resnets.0.x", "up_blocks.0.resnets.0.x"),
    "a text encoder (T5)": named_like("encoder.block.0.layer.0.SelfAttention.q.weight"),
    "LoRA weights": named_like("transformer_blocks.0.attn1.to_q.lora_A.weight"),
}


@pytest.mark.parametrize("look", OTHERS)
def test_a_checkpoint_of_another_architecture_is_refused_by_its_name(look: str) -> None:
    state = OTHERS[look]
    assert looks_like(list(state)) == look
    for name in NAMES:
        if LOOKS[name] == look:
            continue
        with pytest.raises(CheckpointError) as refused:
            load_state(build(name), state)
        message = str(refused.value)
        assert message.startswith(f"This checkpoint looks like {look}, but the model is ")
        assert LOOKS[name] in message


def test_a_checkpoint_of_no_known_architecture_is_refused_with_its_names() -> None:
    with pytest.raises(CheckpointError, match=r"no architecture known here.*head\.weight"):
        load_state(build("open-sora"), named_like("head.weight"))


class _Custom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this would have run",))


def test_files_that_are_no_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read_checkpoint(tmp_path / "text.safetensors")
    torch.save({"weights": _Custom()}, tmp_path / "code.pt")
    with pytest.raises(CheckpointError, match="could run code and are refused"):
        read_checkpoint(tmp_path / "code.pt")
    (tmp_path / "broken.pt").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        read_checkpoint(tmp_path / "broken.pt")
    torch.save({"optimizer": {"step": torch.ones(1)}, "step": 3}, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match="holds optimizer, step and no state dict"):
        read_checkpoint(tmp_path / "optimizer.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    assert "this would have run" not in capsys.readouterr().out


def test_the_command_reports_and_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(load.MODELS, "open-sora", lambda: open_sora.STDiT3(open_sora.TINY))
    state = made_up(TINY["open-sora"])
    torch.save({"model": state}, tmp_path / "weights.pt")
    arguments = [
        "open-sora",
        str(tmp_path / "weights.pt"),
        "--save",
        str(tmp_path / "w.safetensors"),
    ]
    assert load.main(arguments) == 0
    assert f"open-sora: {len(state)} tensors fit" in capsys.readouterr().out
    converted = read_checkpoint(tmp_path / "w.safetensors")
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())

    del state["rope.freqs"]
    torch.save(state, tmp_path / "weights.pt")
    assert load.main(arguments[:2]) == 1
    assert "missing (the model needs them):\n  rope.freqs" in capsys.readouterr().err
