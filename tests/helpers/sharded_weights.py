"""A model whose weights ranks share, as ``fully_shard`` and ``parallelize_module`` make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import pab_compile
from helpers.latte import (
    Loop,
    calls_of,
    compiled_pab,
    ddim_timesteps,
    draw_latents,
    draw_prompt,
    tiny_latte,
)
from helpers.world import Counter, Mesh
from pab_compile.report.exchanges import Exchanges

RANGES = {"spatial": 2, "temporal": 2}
OUTPUT = {"ranges": {"output": 2}, "cut": "output"}
STEPS = 5


@dataclass(frozen=True)
class Found:
    """A generation of one rank.

    Attributes:
        error: the error, or ``""``.
        predictions: of all steps.
        reused: outputs of sites that were reused.
        gathers: gathers of equal parts, such as those of weights inside the graph.
        said: what statistics say of them.
    """

    error: str
    predictions: torch.Tensor | None = None
    reused: int = 0
    gathers: int = 0
    said: int = 0


def generate(group: dist.ProcessGroup | None, how: str, options: dict[str, Any]) -> Found:
    """A generation whose ranks share the weights, and the tokens as well for ``with tokens``."""
    torch._dynamo.reset()
    model = tiny_latte(1)
    counter = Counter(0)
    if group is not None:
        _share(model, how, DeviceMesh.from_group(group, "cpu"))
        options = options | ({"mesh": Mesh(group), "shard": "t"} if "with tokens" in how else {})
    compiled: Any = model
    if "enabled" in how:
        pab_compile.enable(model, inner=counter, **options)
    else:
        compiled = compiled_pab(model, inner=counter, **options)
    loop = Loop(calls_of(compiled), ddim_timesteps(STEPS))
    try:
        found = loop.run()
    except pab_compile.PabError as error:
        return Found(str(error))
    stats = pab_compile.stats(compiled)
    reused = sum(stats.reused.values())
    rows = Exchanges(stats.timeline).rows
    said = sum(row.collectives for row in rows if row.how == "all-gather")
    return Found("", found, reused, counter.gathers, said)


@dataclass(frozen=True)
class Traffic:
    """What a generation exchanges.

    Attributes:
        collectives: how many.
        gathered: bytes that this rank sends in those of them that gather equal parts.
    """

    collectives: float
    gathered: float


def foretold_and_counted(
    group: dist.ProcessGroup, how: str, options: dict[str, Any]
) -> tuple[Traffic, Traffic]:
    """What ``comm`` says of a generation, and what torch's profiler and statistics counted."""
    torch._dynamo.reset()
    model = tiny_latte(1)
    _share(model, how, DeviceMesh.from_group(group, "cpu"))
    shared: dict[str, Any] = {"shard": "t"} if "with tokens" in how else {}
    report = pab_compile.comm(
        model,
        hidden_states=draw_latents(batch=1),
        timestep=torch.tensor([500]),
        encoder_hidden_states=draw_prompt(batch=1),
        schedule=pab_compile.Schedule(STEPS, tuple(ddim_timesteps(STEPS))),
        num_ranks=group.size() if shared else 1,
        options=options | shared,
    )
    gathers = [row for row in report.rows if row.what in ("weights", "gather at the end")]
    foretold = Traffic(report.num_collectives, sum(row.wire_bytes for row in gathers))
    if shared:
        shared["mesh"] = Mesh(group)
    compiled = compiled_pab(model, inner="eager", **options, **shared)
    with torch.profiler.profile(record_shapes=True) as profile:
        Loop(calls_of(compiled), ddim_timesteps(STEPS)).run()
    made = [event for event in profile.events() if event.name.startswith("c10d::")]
    rows = Exchanges(pab_compile.stats(compiled).timeline).rows
    sent = sum(row.sent_bytes for row in rows if row.how == "all-gather")
    for event in made:
        if event.name == "c10d::_allgather_base_":  # by hooks, which the statistics do not know
            sent += 4 * torch.Size(event.input_shapes[1]).numel() * (group.size() - 1)
    return foretold, Traffic(len(made), sent)


def parallel_by_diffusers(group: dist.ProcessGroup) -> str:
    """The error for a model on which diffusers calls ``parallelize_module``."""
    from diffusers import TensorParallelConfig

    from dits.build import Denoising, build, run
    from dits.catalogue import CATALOGUE

    torch._dynamo.reset()
    model: Any = build(CATALOGUE["flux"])
    mesh = init_device_mesh("cpu", (group.size(),), mesh_dim_names=("tp",))
    with (
        mock.patch("torch.accelerator.device_count", return_value=1),
        mock.patch("diffusers.hooks.tensor_parallel._SUPPORTED_TP_DEVICES", ("cpu",)),
    ):
        model.enable_parallelism(config=TensorParallelConfig(mesh=mesh))
    try:
        run(compiled_pab(model), **Denoising(CATALOGUE["flux"], num_steps=2).at(0))
    except pab_compile.PabError as error:
        return str(error)
    return ""


class Uneven(torch.nn.Module):
    """Weights that two ranks cannot share evenly, and one that is no weight of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 5)
        self.second = torch.nn.Linear(5, 3)
        self.scale = torch.nn.Parameter(torch.randn(1, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()) * self.scale


def gathered_like_hooks(group: dist.ProcessGroup) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs of layers that gather their weights by hooks, and of such that do it themselves."""
    mesh = DeviceMesh.from_group(group, "cpu")
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    ways: list[dict[str, Any]] = [
        {},
        {"mp_policy": half},
        {"offload_policy": CPUOffloadPolicy(pin_memory=False)},
        {"shard_placement_fn": lambda p: Shard(1 if p.shape == (5, 4) else 0)},
    ]
    found = []
    for way in ways:
        torch.manual_seed(0)
        model = Uneven()
        for layer in (model.first, model):
            fully_shard(layer, mesh=mesh, **way)
        with torch.no_grad():
            expected = model(x)
            undo = pab_compile.gather_weights(model)
            found.append((expected, model(x)))
            others = {name: 2 * weight for name, weight in model.state_dict().items()}
            model.load_state_dict(others, assign="shard_placement_fn" not in way)
            after = model(x)
            undo.close()
            found.append((model(x), after))
    return found


def _share(model: Any, how: str, mesh: DeviceMesh) -> None:
    blocks = [*model.transformer_blocks, *model.temporal_transformer_blocks]
    if how.startswith("whole"):
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    elif how.startswith("layers"):
        for layer in [*blocks, model]:
            fully_shard(layer, mesh=mesh)
        if "gathered" in how:
            pab_compile.gather_weights(model)
    else:
        for block in blocks:
            first = {f"attn1.to_{name}": ColwiseParallel() for name in "qkv"}
            second = {"attn1.to_out.0": RowwiseParallel(), "ff.net.2": RowwiseParallel()}
            parallelize_module(block, mesh, {**first, "ff.net.0.proj": ColwiseParallel(), **second})
            block.attn1.heads //= mesh.size()
