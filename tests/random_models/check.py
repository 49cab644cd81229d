"""What is checked of a model: kinds, numbers, and what a step that reuses computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._dynamo import lookup_backend
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import pab_compile
from helpers.counting import counting
from helpers.latte import relative_error
from pab_compile.errors import PabError

from .forms import NamedOutput, Output, Prompt
from .latents import latents_shape
from .model import TEXT, TEXT_CHANNELS
from .signatures import build
from .sites import Now, tell
from .spec import Spec

NUM_STEPS = 10
KINDS = ("spatial", "temporal", "full", "joint", "cross", "text", "mlp")
PAB = {"spatial": 2, "temporal": 3, "full": 2, "joint": 2, "cross": 3}
LINEAR = dict.fromkeys(KINDS, 3)
TOLERANCE = {"float32": 1e-4, "bfloat16": 4e-2}
TWO_ROUNDINGS = {
    "attention": ("addmm", "baddbmm"),
    "branch": (
        "addmm",
        "baddbmm",
        "addcmul",
        "lerp",
        "alpha",
        "addcmul in place",
        "addcdiv",
    ),
}
"""Cut -> sums that multiply too, whose product is cached: they are two ops, which round twice."""
MOST = 0.05  # of the branches' operations, more than the ideal


class Wrong(AssertionError):
    """A check that failed."""


class Undecided(Wrong):
    """The check would prove nothing: the oracle is too near to the model, or rounds too far off."""


@dataclass(frozen=True)
class Call:
    """One call of the model.

    Attributes:
        step: the step.
        lane: which of the calls of a step it is.
        arguments: by keyword; ``args`` are positional ones.
    """

    step: int
    lane: str
    arguments: dict[str, Any]

    def of(self, model: Callable[..., Any]) -> torch.Tensor:
        """What a model returns, as one tensor."""
        rest = dict(self.arguments)
        made = model(*rest.pop("args", ()), **rest)
        made = made.sample if isinstance(made, (Output, NamedOutput)) else made
        return torch.cat([leaf.flatten().float() for leaf in pytree.tree_leaves(made)])


def calls(spec: Spec, model: Any, num: int) -> Iterator[Call]:
    """The calls of the first steps of a generation. The latents differ at every step."""
    table = torch.linspace(990, 90, NUM_STEPS)
    doubled = spec.guidance == "one call"
    batch = spec.batch * (2 if doubled else 1)
    lanes = ("cond", "uncond", "half")[: {"two calls": 2, "three calls": 3}.get(spec.guidance, 1)]
    prompts = {lane: _prompt(spec, batch, number) for number, lane in enumerate(lanes)}
    for step in range(num):
        noise = torch.Generator().manual_seed(1000 * spec.seed + step)
        for lane in lanes:
            timestep = _timestep(spec, table, step, batch)
            given = model.call(_latents(spec, batch, noise), timestep, prompts[lane])
            yield Call(step, lane, given)


def _latents(spec: Spec, batch: int, noise: torch.Generator) -> Any:
    dtype = torch.float32 if spec.mixed else getattr(torch, spec.dtype)
    if spec.layout.startswith("list"):
        shape = latents_shape(spec, 1)
        return [torch.randn(shape, generator=noise).to(dtype) for _ in range(batch)]
    return torch.randn(latents_shape(spec, batch), generator=noise).to(dtype)


def _timestep(spec: Spec, table: torch.Tensor, step: int, batch: int) -> torch.Tensor | float:
    if spec.timestep == "number":
        return float(table[step])
    if spec.timestep == "scalar":
        return table[step]
    if spec.timestep == "table":
        return table[step].expand(batch)
    size = {"sample": (), "frame": (spec.frames,), "token": (spec.num_tokens,)}[spec.level]
    found = table[step].expand(batch, *size).clone()
    if size and spec.seed % 2:
        found[:, 0] = 0.0  # given: it is no noise
    return found


def _prompt(spec: Spec, batch: int, number: int) -> Prompt:
    noise = torch.Generator().manual_seed(777 + number)
    dtype = getattr(torch, spec.dtype)
    made = Prompt()
    if spec.pooled:
        made.pooled = torch.randn(batch, TEXT_CHANNELS, generator=noise).to(dtype)
    if spec.front == "history":
        made.history = torch.randn(batch, spec.num_front, TEXT_CHANNELS, generator=noise).to(dtype)
    if spec.first:
        made.first = torch.randn(latents_shape(spec, batch), generator=noise).to(dtype)
    if spec.scale:
        made.scale = torch.full((batch,), 70.0 + 30 * number)
    if not spec.cross and spec.stream == "video":
        return made
    text = torch.randn(batch, TEXT, TEXT_CHANNELS, generator=noise).to(dtype)
    lengths = torch.tensor([TEXT - 2 * (row % 2) for row in range(batch)])
    if spec.text == "list":
        made.text = [row[:length] for row, length in zip(text, lengths.tolist(), strict=True)]
        return made
    made.text = text
    if spec.text == "squeezed":
        made.text = text[:, None]
    elif spec.text == "layers":
        made.text = torch.stack([text, text.flip(-1)], 2)
    elif spec.text != "tensor":
        mask = torch.arange(TEXT) < lengths[:, None]
        made.mask = mask if spec.text == "padded" else mask.long()
    return made


class Backends:
    """Several sets of options for one model, which Dynamo traces only once.

    Args:
        variants: name -> options of the backend.

    Attributes:
        current: name of the options that calls run with.
        counted: its first entry counts the operations that run.
    """

    def __init__(self, variants: Mapping[str, dict[str, Any]]) -> None:
        self.current, self.counted = next(iter(variants)), [0]
        inner = counting(self.counted)
        self._variants = {name: {**options, "inner": inner} for name, options in variants.items()}

    def __call__(self, graph_module: Any, inputs: Any) -> Callable[..., Any]:
        """Compile a graph for each set of options when it first runs with it."""
        pab = lookup_backend("pab")
        made = {name: pab(graph_module, inputs, options=o) for name, o in self._variants.items()}
        return lambda *args: made[self.current](*args)


VARIANTS = {
    "nothing": {"ranges": {}},
    "PAB": {"ranges": PAB, "window": (0.0, 1.0)},
    "linear3": {"ranges": "linear3"},
}


def check(spec: Spec, variants: Sequence[str] = tuple(VARIANTS)) -> None:
    """Check a model.

    Args:
        spec: of the model.
        variants: the sets of options to run it with.

    Raises:
        Wrong: what does not hold.
        PabError: it is refused.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    # Without gradients the module of torch calls a kernel of its own, with other roundings. No
    # compiler sees it.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        _check(spec, variants)
    except Undecided:
        if spec.dtype == "float32":
            raise
        _check(replace(spec, dtype="float32", mixed=False), variants)  # it rounds less
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        pab_compile.reset()


def _check(spec: Spec, variants: Sequence[str]) -> None:
    torch._dynamo.reset()
    model = build(spec)
    backends = Backends({name: VARIANTS[name] for name in variants})
    compiled: Any = torch.compile(model, backend=backends)
    if spec.timestep == "number":  # Dynamo takes the first value for a constant
        for call in list(calls(spec, model, 2))[::-1]:
            with pab_compile.step(call.step, NUM_STEPS):
                call.of(compiled)
    for name in variants:
        pab_compile.reset()
        backends.current = name
        if name == "nothing":
            check_nothing(spec, model, compiled)
        elif name == "PAB":
            now = Now("attention", PAB)
            check_reuse(spec, model, compiled, backends, now, num=4, reusing=1)
            check_kinds(spec, model, now)
        else:
            now = Now("branch", LINEAR, order=1)
            check_reuse(spec, model, compiled, backends, now, num=6, reusing=2)


def check_nothing(spec: Spec, model: Any, compiled: Any) -> None:
    """With nothing to reuse the result is eager's, bit for bit."""
    call = next(calls(spec, model, 1))
    if not torch.equal(call.of(compiled), call.of(model)):
        error = relative_error(call.of(compiled), call.of(model))
        raise Wrong(f"nothing: bits: relative error {error:.1e}")


def check_kinds(spec: Spec, model: Any, now: Now) -> None:
    """The attentions are what was built, and each reused as often as the plan says."""
    found = pab_compile.explain(model).counts()
    if Counter(found) != spec.kinds:
        raise Wrong(f"PAB: kinds: found {dict(found)}, built {dict(spec.kinds)}")
    stats = pab_compile.stats(model)
    for kind in PAB:
        told = now.computed[kind], now.reused[kind]
        ours = stats.computed.get(kind, 0), stats.reused.get(kind, 0)
        if told != ours:
            raise Wrong(
                f"PAB: counts: {kind}: computed and reused {ours}, should be {told}; {stats.notes}"
            )


def check_reuse(
    spec: Spec, model: Any, compiled: Any, backends: Backends, now: Now, num: int, reusing: int
) -> None:
    """Compare a generation with the oracle's, and what a step computes with the ideal.

    Args:
        spec: of the model.
        model: the model, which is its own oracle.
        compiled: the compiled model.
        backends: its backends.
        now: what the oracle does.
        num: number of steps.
        reusing: a step at which everything is reused.
    """
    name = backends.current
    ours, right, plain = [], [], []
    spent = ideal = whole = 0
    with pab_compile.generation():
        for call in calls(spec, model, num):
            tell(model, now.at(call.step, call.lane))
            right.append(call.of(model))
            if call.step == reusing:
                tell(model, now.at(call.step, call.lane, everything=True))
                ideal += _flops(model, call)
            tell(model, None)
            plain.append(call.of(model))
            backends.counted[0] = 0
            with _stated(spec, call):
                ours.append(call.of(compiled))
            if call.step == reusing:
                whole += _flops(model, call)
                spent += backends.counted[0]
    if not torch.equal(ours[0], plain[0]) and spec.residual not in TWO_ROUNDINGS[now.cut]:
        error = relative_error(ours[0], plain[0])
        raise Wrong(f"{name}: bits: relative error {error:.1e} of a step that computes")
    actual, expected, eager = map(torch.stack, (ours, right, plain))
    tolerance = TOLERANCE[spec.dtype]
    if relative_error(right[0], plain[0]) > tolerance:
        raise Undecided(f"{name}: the oracle is not the model")
    if relative_error(eager, expected) < 3 * tolerance:
        raise Undecided(f"{name}: the oracle is too close to eager to prove anything")
    if (error := relative_error(actual, expected)) > tolerance:
        raise Wrong(f"{name}: numbers: relative error {error:.1e}")
    if spent - ideal > MOST * (whole - ideal):
        share = (spent - ideal) / (whole - ideal)
        raise Wrong(f"{name}: operations: a reuse computes {share:.0%} of the branches")


def _flops(model: Any, call: Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call.of(model)
    return counter.get_total_flops()


def _stated(spec: Spec, call: Call) -> AbstractContextManager[Any]:
    """The step of a timestep that is no part of a table is stated."""
    if spec.timestep in ("value", "number"):
        return pab_compile.step(call.step, NUM_STEPS)
    return nullcontext()


def judged(spec: Spec, variants: Sequence[str] = tuple(VARIANTS)) -> str:
    """What is wrong with a model: ``""`` for nothing, or a line that begins with the check."""
    try:
        check(spec, variants)
    except Wrong as error:
        return str(error)
    except PabError as error:
        return f"refused: {type(error).__name__}: {error}"
    except Exception as error:
        return f"crashed: {type(error).__name__}: {str(error).strip()[:600]}"
    return ""
