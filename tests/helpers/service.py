"""A service: requests of many sizes, prompt lengths and levels, in several threads, some cancelled.

The model is a narrow Wan of diffusers. What a request must give comes from hooks on the blocks of a
copy of it, which are told the step and the call. A level treats all sites alike, so a block that
reuses adds to its input what its last outputs added, continued along a line.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from diffusers import WanTransformer3DModel

import pab_compile
from pab_compile.backend import CompiledGraph
from pab_compile.compile import learn_sizes, parts
from pab_compile.compile.lower import PieceCompiler
from pab_compile.compile.open_function import OpenFunction

STEPS = 10
SIZES = (
    *((8, 8), (8, 12), (12, 8), (10, 16), (16, 10)),
    *((12, 12), (6, 20), (20, 6), (14, 10), (18, 12)),
)
LENGTHS = (7, 9, 12, 5, 15)
RANGES = {"quality": 2, "balanced": 3, "fast": 4, "ultra": 5}
WINDOW_START = 0.1


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        height: rows of the latents.
        width: columns of the latents.
        words: length of the prompt.
        level: the level that the request uses.
        seed: of noise and prompt.
        is_guided: whether each step calls the model twice.
        stop: after how many steps the user cancels; None for never.
    """

    height: int
    width: int
    words: int
    level: str
    seed: int
    is_guided: bool
    stop: int | None

    def noise(self) -> torch.Tensor:
        """The latents at the start."""
        return self._draw(1, 4, 2, self.height, self.width)

    def prompts(self) -> list[torch.Tensor]:
        """One prompt per call of a step."""
        return list(self._draw(1 + self.is_guided, 1, self.words, 16))

    def _draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed))


def requests(number: int) -> list[Request]:
    """Requests in which sizes, lengths and levels come in turn. Every fifth is cancelled."""
    levels = list(RANGES)
    return [
        Request(
            *SIZES[i % len(SIZES)],
            words=LENGTHS[(i + i // len(SIZES)) % len(LENGTHS)],
            level=levels[(i + i // len(SIZES)) % len(levels)],
            seed=i,
            is_guided=i % 3 == 1,
            stop=1 + i % 7 if i % 5 == 3 else None,
        )
        for i in range(number)
    ]


def narrow_wan(num_blocks: int) -> WanTransformer3DModel:
    """A Wan with random weights."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=32,
        ffn_dim=48,
        num_layers=num_blocks,
        rope_max_seq_len=64,
    )
    return model.eval().requires_grad_(False)


class Cancelled(Exception):
    """The user cancelled a request."""


def generate(call: Callable[..., Any], request: Request) -> list[torch.Tensor]:
    """The predictions of a request, until it ends or is cancelled.

    Args:
        call: takes latents, timestep and prompt as keywords, and the number of the step's call.
        request: what is asked for.
    """
    predictions: list[torch.Tensor] = []
    try:
        for prediction in _steps(call, request):
            predictions.append(prediction)
            if len(predictions) == request.stop and request.seed % 2:
                raise Cancelled
            if len(predictions) == request.stop:
                break
    except Cancelled:
        pass
    return predictions


def _steps(call: Callable[..., Any], request: Request) -> Iterator[torch.Tensor]:
    latents, prompts = request.noise(), request.prompts()
    timesteps = torch.linspace(1000, 100, STEPS)
    for timestep in timesteps:
        with torch.no_grad():
            given = [
                call(number, hidden_states=latents, timestep=timestep[None], **_as_prompt(prompt))
                for number, prompt in enumerate(prompts)
            ]
        prediction = given[0] if len(given) == 1 else given[0] + 2 * (given[1] - given[0])
        latents = latents - 0.3 * prediction
        yield prediction


def _as_prompt(prompt: torch.Tensor) -> dict[str, Any]:
    return {"encoder_hidden_states": prompt, "return_dict": False}


def serve(
    model: Any,
    handle: pab_compile.Handle,
    asked: Sequence[Request],
    num_threads: int,
    ended: Callable[[], object] = lambda: None,
) -> list[list[torch.Tensor]]:
    """The predictions of all requests.

    Args:
        model: the model that the handle compiled.
        handle: exchanges the plan.
        asked: the requests.
        num_threads: how many of them run at once.
        ended: called at the end of each.
    """

    def call(_: int, **inputs: Any) -> torch.Tensor:
        return model(**inputs)[0]

    def one(request: Request) -> list[torch.Tensor]:
        with handle.use(request.level):
            predictions = generate(call, request)
        ended()
        return predictions

    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(one, asked))


class Hooked:
    """A copy of the model whose blocks follow the plan of a request.

    Args:
        model: the model.
        request: the request. One object serves one generation.
    """

    def __init__(self, model: WanTransformer3DModel, request: Request) -> None:
        self._model = copy.deepcopy(model)
        self._range = RANGES[request.level]
        self._added: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = defaultdict(list)
        self._timesteps: list[float] = []
        self._call = 0
        for number, block in enumerate(self._model.blocks):
            block.forward = self._forward(number, block.forward)

    def __call__(self, number: int, **inputs: Any) -> torch.Tensor:
        """One call of the model."""
        if (now := float(inputs["timestep"])) not in self._timesteps:
            self._timesteps.append(now)
        self._call = number
        return self._model(**inputs)[0]

    def _forward(self, block: int, real: Callable[..., torch.Tensor]) -> Callable[..., Any]:
        def forward(stream: torch.Tensor, *args: Any) -> torch.Tensor:
            step = len(self._timesteps) - 1
            added = self._added[block, self._call]
            if step % self._range and step / STEPS >= WINDOW_START:
                (at, last), *before = reversed(added[-2:])
                for at_2, last_2 in before:
                    last = last + (last - last_2) * ((step - at) / (at - at_2))
                return stream + last
            result = real(stream, *args)
            added.append((step, result - stream))
            return result

        return forward


def expected(model: WanTransformer3DModel, request: Request) -> list[torch.Tensor]:
    """What a request must give."""
    return generate(Hooked(model, request), request)


@dataclass
class Analysed:
    """A graph of Dynamo in one form.

    Attributes:
        captures: the sizes that it was captured and analysed for.
        served: all sizes that it has programs for.
    """

    captures: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)


@dataclass
class Compilations:
    """What was compiled meanwhile.

    Attributes:
        graphs: by Dynamo's graph and form, in the order of their first call.
        num_invented: how often a graph was captured at sizes that nobody asked for.
        num_pieces: how often the inner compiler ran.
        num_alone: how often a piece for all sizes did not fit one of them.
    """

    graphs: dict[tuple[object, object], Analysed] = field(default_factory=dict)
    num_invented: int = 0
    num_pieces: int = 0
    num_alone: int = 0


@contextmanager
def watched() -> Iterator[Compilations]:
    """Count compilations inside a block."""
    found, capture, fixed = Compilations(), parts.capture, OpenFunction.fixed
    for_sizes, run_inner = CompiledGraph._for_sizes, PieceCompiler._run_inner
    running: list[Analysed] = []

    def counted_sizes(graph: CompiledGraph, request: Any) -> Any:
        analysed = found.graphs.setdefault((graph, request.form), Analysed())
        running.append(analysed)
        shapes = [tuple(tensor.shape) for tensor in request.tensors]
        named = zip(request.origins, shapes, strict=True)
        size = ", ".join("x".join(map(str, s)) for origin, s in named if origin and len(s) > 1)
        analysed.served.append(size)
        try:
            return for_sizes(graph, request)
        finally:
            running.pop()

    def counted_capture(*args: Any) -> Any:
        running[-1].captures.append(running[-1].served[-1])
        return capture(*args)

    def counted_other(*args: Any) -> Any:
        found.num_invented += 1
        return capture(*args)

    def counted_inner(compiler: PieceCompiler, graph: Any, args: Any, piece: Any = None) -> Any:
        found.num_pieces += 1
        return run_inner(compiler, graph, args, piece)

    def counted_fixed(function: OpenFunction, sizes: tuple[int, ...]) -> Any:
        found.num_alone += 1
        return fixed(function, sizes)

    with (
        mock.patch.object(OpenFunction, "fixed", counted_fixed),
        mock.patch.object(CompiledGraph, "_for_sizes", counted_sizes),
        mock.patch.object(parts, "capture", counted_capture),
        mock.patch.object(learn_sizes, "capture", counted_other),
        mock.patch.object(PieceCompiler, "_run_inner", counted_inner),
    ):
        yield found
