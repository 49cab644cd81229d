"""Apart: whether an attention op computes each position of a dimension from that position alone.

Nothing states this of an op that is not torch's. So the op itself is asked: it runs on random
tensors, as a whole and on parts of them. If the parts of its result are the results of the parts,
ranks may share the dimension::

    o = op(q, k, v)                        # [2, 64, 4, 16]: heads are the third dimension
    o[:, :, h:h+1] == op(q[:, :, h:h+1], k[:, :, h:h+1], v[:, :, h:h+1])     for every head h

Everything but the tensors stays as the model passes it. The tensors have the sizes of the call,
but fewer tokens and rows where the op would take long. An op that cannot run is not apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.tracing import outside_of_tracing

from .verdict import shape_of

_MOST_PARTS = 16
_MOST_WORK = {"cpu": 2**28}  # multiplications per run
_MOST_WORK_ELSEWHERE = 2**36
_MOST_ELEMENTS = 2**24
_LEAST_TOLERANCE = 1e-4
_Places = tuple[int | str | None, ...]
_KNOWN: dict[Any, _Places | str] = {}


@dataclass(frozen=True)
class _Operand:
    """A tensor of the call: sizes, type, and how many positions belong together."""

    sizes: tuple[int, ...]
    dtype: torch.dtype
    together: int


def places_of_parts(node: fx.Node, operands: Sequence[fx.Node], dim: int) -> _Places | str:
    """Where the outputs of an op have a dimension of its operands, if it keeps positions apart.

    Args:
        node: a call whose only tensors are the operands.
        operands: its queries, keys and values.
        dim: a dimension of all of them. Where one has more positions than another, several
            successive ones belong to one position of the other.

    Returns:
        For each output its dimension, None if it is the same for every part, or the reason why it
        is neither. Or the reason why the op does not keep positions apart.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return "it takes other graphs"
    if ir.has_effect(node):
        return "it writes to its operands or draws random numbers"
    distinct = list(dict.fromkeys(operands))
    others = [n for n in node.all_input_nodes if n not in distinct]
    if others:
        return f"it also reads {others[0].name}, and nothing says which part of it belongs to which"
    least = min(int(shape_of(n)[dim]) for n in distinct)
    given = tuple(_operand(n, dim, least) for n in distinct)
    numbers: dict[fx.Node, Any] = {n: _Slot(place) for place, n in enumerate(distinct)}
    args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), numbers.__getitem__)
    counts = {o.sizes[dim] for o in given}
    for arg in (*args, *kwargs.values()):
        if _is_count(arg, counts):
            return f"its argument {arg} may be the number of positions"
        if isinstance(arg, (list, tuple)) and len(arg) in counts and len(set(map(repr, arg))) > 1:
            return "one of its arguments may list a number for each position"
    device = ir.tensors(distinct[0])[0].device
    key = (target, repr((args, kwargs)), given, dim, device)
    if key not in _KNOWN:
        _KNOWN[key] = _ask(target, args, kwargs, given, dim, least, device)
    return _KNOWN[key]


@dataclass(frozen=True)
class _Slot:
    """The place of an operand in the arguments of a call."""

    number: int


def _operand(node: fx.Node, dim: int, least: int) -> _Operand:
    sizes = tuple(map(int, shape_of(node)))
    return _Operand(sizes, ir.tensors(node)[0].dtype, sizes[dim] // least)


def _is_count(argument: Any, counts: Set[int]) -> bool:
    """Whether an argument is a number that some tensors have as a size."""
    is_number = isinstance(argument, int) and not isinstance(argument, bool)
    return is_number and argument in counts and argument > 1


def _ask(
    target: Callable[..., Any],
    args: Any,
    kwargs: Any,
    operands: Sequence[_Operand],
    dim: int,
    num: int,
    device: torch.device,
) -> _Places | str:
    """Run an op on random tensors, as a whole and in parts."""
    if device.type == "meta":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    work = _MOST_WORK.get(device.type, _MOST_WORK_ELSEWHERE)

    def run(tensors: Sequence[torch.Tensor]) -> list[Any]:
        given = _filled((args, kwargs), tensors)
        found = target(*given[0], **given[1])
        return list(found) if isinstance(found, (list, tuple)) else [found]

    index = [device.index or 0] if device.type == "cuda" else []
    try:
        with (
            outside_of_tracing(),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng(index),
        ):
            sizes = _fewer(operands, dim, work)
            if sizes is None:
                return "it would take too long to try it"
            pairs = zip(operands, sizes, strict=True)
            gone = {a for o, each in pairs for a, b in zip(o.sizes, each, strict=True) if a != b}
            if any(_is_count(arg, gone) for arg in (*args, *kwargs.values())):
                return "it takes long, and one of its arguments may be its number of tokens"
            tensors = _tensors(operands, sizes, dim, device)
            return _compared(run, tensors, [o.together for o in operands], dim, num)
    except Exception as error:  # whatever the op raises: it is then computed as a whole
        words = str(error).strip().splitlines() or [type(error).__name__]
        return f"it could not be tried on {device.type} ({words[0][:100]})"


def _filled(value: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, _Slot):
        return tensors[value.number]
    if isinstance(value, dict):
        return {name: _filled(each, tensors) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_filled(each, tensors) for each in value]
    return value


def _compared(
    run: Callable[[Sequence[torch.Tensor]], list[Any]],
    tensors: Sequence[torch.Tensor],
    together: Sequence[int],
    dim: int,
    num: int,
) -> _Places | str:
    whole, again = run(tensors), run(tensors)
    if any(_differ(a, b) for a, b in zip(whole[:1], again[:1], strict=True)):
        return "its results differ from run to run"
    found: list[int | str | None] | None = None
    for low, high in _parts(num):
        mine = zip(tensors, together, strict=True)
        part = run([x.narrow(dim, low * n, (high - low) * n).contiguous() for x, n in mine])
        places = [_place(a, b, low, high, num) for a, b in zip(whole, part, strict=True)]
        if isinstance(places[0], str):
            return places[0]
        if found is None:
            found = places
        found = [a if a == b else "its place varies" for a, b in zip(found, places, strict=True)]
    return tuple(found or ())


def _parts(num: int) -> list[tuple[int, int]]:
    """Single positions, and halves."""
    step = max(1, math.ceil(num / _MOST_PARTS))
    single = sorted({*range(0, num, step), num - 1})
    halves = [(0, num // 2), (num // 2, num)] if num > 2 else []
    return [*((n, n + 1) for n in single), *halves]


def _place(whole: Any, part: Any, low: int, high: int, num: int) -> int | str | None:
    """The dimension of an output of which a part was computed; None if it is the same."""
    if not isinstance(whole, torch.Tensor) or not isinstance(part, torch.Tensor):
        return None if whole is part or whole == part else "it is no tensor"
    differ = [d for d, (a, b) in enumerate(zip(whole.shape, part.shape, strict=False)) if a != b]
    if whole.dim() != part.dim() or len(differ) > 1:
        return "its results have other sizes for a part"
    if not differ:
        return "its results depend on all positions" if _differ(whole, part) else None
    each = whole.shape[differ[0]] // num
    if whole.shape[differ[0]] != each * num or part.shape[differ[0]] != each * (high - low):
        return "its results have other sizes for a part"
    mine = whole.narrow(differ[0], low * each, (high - low) * each)
    return "its results depend on all positions" if _differ(mine, part) else differ[0]


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    if not a.is_floating_point():
        return not torch.equal(a, b)
    tolerance = max(_LEAST_TOLERANCE, 4 * torch.finfo(a.dtype).eps)
    if a.numel() == 0:
        return False
    a, b = a.double(), b.double()
    return not bool((a - b).abs().max() <= tolerance * a.abs().max())  # also if one is no number


def _fewer(operands: Sequence[_Operand], dim: int, most: int) -> list[tuple[int, ...]] | None:
    """Sizes of which the op takes no more than some multiplications: fewer tokens and rows."""
    sizes = [list(o.sizes) for o in operands]
    free = [d for d in range(len(sizes[0]) - 1) if d != dim]
    while True:
        elements = [math.prod(each) for each in sizes]
        keys = max(each[d] for each in sizes for d in range(len(each) - 1))
        largest = max((each[d] for each in sizes for d in free), default=1)
        if max(elements) * keys <= most and max(elements) <= _MOST_ELEMENTS:
            return [tuple(each) for each in sizes]
        if largest <= 2:
            return None
        for each in sizes:
            for d in free:
                each[d] = largest // 2 if each[d] == largest else each[d]


def _tensors(
    operands: Sequence[_Operand], sizes: Sequence[Sequence[int]], dim: int, device: torch.device
) -> list[torch.Tensor]:
    """Random tensors. Positions differ in magnitude, so that one scale for all of them shows."""
    generator = torch.Generator("cpu").manual_seed(0)
    found = []
    for number, (operand, shape) in enumerate(zip(operands, sizes, strict=True)):
        x = torch.randn(shape, generator=generator, device="cpu")
        power = torch.arange(shape[dim], device="cpu") // operand.together % 4
        scale = torch.exp2(power.float() * (1, -1, 2)[number % 3])
        x = x * scale.view([-1 if d == dim else 1 for d in range(x.dim())])
        found.append(x.to(device=device, dtype=operand.dtype))
    return found
