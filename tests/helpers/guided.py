"""A small model with guidance, plans that leave guidance out, and the same by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from .captured import CHANNELS, FRAMES, SPACE, SmallDiT, usual

STEPS = 8
COMBINE = (-0.4, 1.4)
ENTRIES = ["C", "C", "C", list(COMBINE), "C", "C", list(COMBINE), "C"]
LEFT_OUT = {"2": [2.0, -4.0], "5": [-3.0, 1.0, 4.0]}
SOURCES = {2: (0, 1), 5: (0, 1, 4)}
CALLS: dict[str, Any] = {"prompts": "calls"}
FIRST_HALF: dict[str, Any] = {"prompts": "batch", "computes": "first"}
SECOND_HALF: dict[str, Any] = {"prompts": "batch", "computes": "second"}
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Small(SmallDiT):
    """A small transformer that takes any number of rows."""

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor, prompt: torch.Tensor
    ) -> torch.Tensor:
        x = self.embed(latents.permute(0, 2, 3, 4, 1).reshape(-1, SPACE, CHANNELS))
        angles = timestep[:, None] * torch.arange(8, dtype=latents.dtype)
        emb = self.time(torch.sin(angles)).repeat_interleave(FRAMES, 0)[:, None]
        text = self.text(prompt).repeat_interleave(FRAMES, 0)
        for block in self.blocks:
            x = self.between(block(x, emb, text))
        x = self.last(x).reshape(len(latents), FRAMES, *latents.shape[3:], CHANNELS)
        return x.permute(0, 4, 1, 2, 3)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        return x


def small(dtype: torch.dtype = torch.float32, kind: type[Small] = Small) -> Small:
    torch.manual_seed(0)
    return kind(2).requires_grad_(False).to(dtype)


def compiled(dit: Any, path: Path, guidance: Any, weights: Any = LEFT_OUT, **more: Any) -> Any:
    path = written(path, guidance, weights, more)
    torch._dynamo.reset()
    return torch.compile(dit, backend="pab", options={"plan": str(path), "inner": "eager", **more})


def written(path: Path, guidance: Any, weights: Any, more: Any) -> Path:
    """A plan file. What belongs into it is taken out of the options."""
    content = {"format": "pab_compile.plan/2", "num_steps": STEPS, "cut": "output"}
    content |= {"entries": ENTRIES, "guidance": {**guidance, "weights": weights}}
    content |= {name: more.pop(name) for name in ("cut", "coalesce", "num_steps") if name in more}
    content["entries"] = more.pop("entries", content["entries"])
    path = path / f"{len(list(path.iterdir()))}.json"
    path.write_text(json.dumps(content))
    return path


def timesteps() -> torch.Tensor:
    return torch.linspace(1000, 125, STEPS)


def prompts(count: int = 2) -> list[torch.Tensor]:
    return [usual("prompt") * (1 - 0.4 * i) for i in range(count)]


Call = Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], list[torch.Tensor]]


def in_calls(model: Any, backwards: bool = False) -> Call:
    """Calls the model once per prompt."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        ordered = texts[::-1] if backwards else texts
        found = [model(x, t.expand(len(x)).to(x), text) for text in ordered]
        return found[::-1] if backwards else found

    return call


def in_a_batch(model: Any) -> Call:
    """Calls the model once, with all prompts."""

    def call(x: torch.Tensor, t: torch.Tensor, texts: Any) -> list[torch.Tensor]:
        rows = torch.cat([x] * len(texts))
        return list(model(rows, t.expand(len(rows)).to(x), torch.cat(texts)).chunk(len(texts)))

    return call


def run(
    call: Call,
    texts: Any = None,
    dtype: torch.dtype = torch.float32,
    latents: torch.Tensor | None = None,
    beside: Sequence[float] = (),
) -> torch.Tensor:
    """All that the model returned in a generation.

    Args:
        call: calls the model.
        texts: the prompts, if they are not the usual ones.
        dtype: of the latents and the prompts.
        latents: at the first step, if they are not the usual ones.
        beside: a row of numbers that the loop also has in a variable.
    """
    x, found, table = usual("latents").to(dtype) if latents is None else latents, [], timesteps()
    texts = [text.to(dtype) for text in (prompts() if texts is None else texts)]
    for t in table:
        now = call(x, t, texts)
        found.append(torch.stack(now))
        x = x - (now[-1] + 2 * (now[0] - now[-1])) / STEPS
    return torch.stack(found)


def rounded(terms: Sequence[tuple[float, torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
    """A weighted sum, rounded once."""
    return torch.stack([weight * x.double() for weight, x in terms]).sum(0).to(dtype)


def by_hand(
    dit: Any,
    left_out: Any = LEFT_OUT,
    computes: int = 0,
    dtype: torch.dtype = torch.float32,
    given: Any = None,
) -> tuple[torch.Tensor, int]:
    """The same with the plan written out; also the number of calls with one prompt.

    Args:
        left_out: step -> weights.
        computes: the prompt that always computes.
        given: the latents and the prompts, if they are not the usual ones.
    """
    x, texts = (usual("latents"), prompts()) if given is None else given
    x, found, calls = x.to(dtype), [], 0
    texts, other = [text.to(dtype) for text in texts], 1 - computes
    for step, t in enumerate(timesteps()):
        now = [x, x]
        if ENTRIES[step] != "C":
            before = [s for s in range(step) if ENTRIES[s] == "C"][-2:]
            for i in (0, 1):
                pairs = zip(COMBINE, before, strict=True)
                now[i] = rounded([(w, found[s][i]) for w, s in pairs], dtype)
        else:
            now[computes], calls = dit(x, t.expand(len(x)).to(x), texts[computes]), calls + 1
            if str(step) in left_out:
                pairs = zip(left_out[str(step)], SOURCES[step], strict=True)
                terms = [(-w, found[s][computes] - found[s][other]) for w, s in pairs]
                now[other] = rounded([(1.0, now[computes]), *terms], dtype)
            else:
                now[other], calls = dit(x, t.expand(len(x)).to(x), texts[other]), calls + 1
        found.append(torch.stack(now))
        x = x - (now[1] + 2 * (now[0] - now[1])) / STEPS
    return torch.stack(found), calls


FORMS = [
    pytest.param(CALLS, in_calls, 0, id="two calls"),
    pytest.param(CALLS, lambda model: in_calls(model, True), 1, id="two calls, the other order"),
    pytest.param(FIRST_HALF, in_a_batch, 0, id="first half"),
    pytest.param(SECOND_HALF, in_a_batch, 1, id="second half"),
]
