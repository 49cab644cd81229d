"""Buckets: prompts are padded to few lengths, so that every length has kernels of its own.

A prompt of 77 tokens runs as one of 128, and a mask says which tokens are real::

    enable(pipe, dynamic=False, buckets={"encoder_hidden_states": 64})
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pab_compile.errors import OptionError, PabError

COMPILED_CALL = "_compiled_call_impl"
"""Where a module that is compiled in place keeps its compiled call."""
_TOKENS = 1  # the dimension of the tokens, in a prompt and in its mask
_KEPT = 16  # padded tensors that are remembered


@dataclass(frozen=True)
class Bucket:
    """How the tokens of one input are padded.

    Attributes:
        multiple: their number becomes a multiple of this.
        mask: the input that masks them; None: the only one that can be it.
    """

    multiple: int
    mask: str | None = None


def read_buckets(given: Any) -> dict[str, Bucket]:
    """Check the option ``buckets``.

    Args:
        given: input name -> multiple, or (multiple, name of the mask).

    Raises:
        OptionError: it is something else.
    """
    if not isinstance(given, Mapping):
        raise OptionError(
            "buckets maps the name of a prompt input to a number of tokens, as in "
            f"{{'encoder_hidden_states': 64}}; got {given!r}."
        )
    found = {}
    for name, value in given.items():
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2
        multiple: Any = value[0] if is_pair else value
        mask: Any = value[1] if is_pair else None
        is_number = isinstance(multiple, int) and not isinstance(multiple, bool) and multiple >= 1
        if not is_number or not isinstance(mask, (str, type(None))):
            raise OptionError(
                f"buckets[{name!r}]={value!r}: give a number of tokens, at least 1, or a pair of "
                "it and the name of the mask, such as (64, 'encoder_attention_mask')."
            )
        found[name] = Bucket(multiple, mask)
    return found


class Padding:
    """Pads the prompts of one module.

    Args:
        module: the module.
        buckets: input name -> bucket.

    Raises:
        OptionError: the module has no such input, or no mask for it.
    """

    def __init__(self, module: torch.nn.Module, buckets: Mapping[str, Bucket]) -> None:
        self._signature = inspect.signature(module.forward)
        self._module = module
        self._buckets = dict(buckets)
        inputs = tuple(self._signature.parameters)
        self._masks = [name for name in inputs if "mask" in name]
        self._checked: set[str] = set()
        self._kept = _Kept()
        for name, bucket in self._buckets.items():
            for wanted in (name, bucket.mask):
                if wanted is not None and wanted not in inputs:
                    raise OptionError(
                        f"buckets names {wanted!r}, which is no input of the model. Its inputs "
                        f"are {', '.join(inputs)}."
                    )
            if bucket.mask is None and not self._masks:
                raise OptionError(
                    f"buckets pads {name!r}, but no input of the model is called like a mask, so "
                    "its attention would read the padding. Leave buckets out: once a length has "
                    "changed, the pieces serve every length."
                )

    def attach(self) -> None:
        """Let the compiled call of the module, which is compiled in place, get padded prompts."""
        compiled = getattr(self._module, COMPILED_CALL)

        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled(**self._padded(args, kwargs))

        # Not its attributes: with them Dynamo would take this for a function that it compiled.
        functools.update_wrapper(call, compiled, updated=())
        setattr(self._module, COMPILED_CALL, call)

    def _padded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by their names, with padded prompts and their masks.

        Raises:
            OptionError: a prompt or its mask cannot be padded.
            PabError: padding changes what the model returns.
        """
        bound = self._signature.bind(*args, **kwargs)
        given = {name: bound.arguments[name] for name in bound.arguments}
        for parameter in self._signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                given |= given.pop(parameter.name, {})
        for name, bucket in self._buckets.items():
            if given.get(name) is None:
                continue
            prompt = self._prompt(name, given)
            mask = bucket.mask or self._mask_of(name, given)
            more = -prompt.shape[_TOKENS] % bucket.multiple
            is_changed = more > 0 or given.get(mask) is None  # then a mask is made
            if is_changed and name not in self._checked:
                self._check(name, mask, given, bucket.multiple)
                self._checked.add(name)
            given |= self._longer(name, mask, given, more)
        return given

    def _prompt(self, name: str, given: Mapping[str, Any]) -> torch.Tensor:
        prompt = given[name]
        if not isinstance(prompt, torch.Tensor) or prompt.ndim <= _TOKENS:
            raise OptionError(
                f"buckets pads {name!r}, which must be a tensor (batch, tokens, ...); got a "
                f"{type(prompt).__name__}."
            )
        return prompt

    def _mask_of(self, name: str, given: Mapping[str, Any]) -> str:
        """The name of the input that masks a prompt: one of its size, or else one without value."""
        size = given[name].shape[: _TOKENS + 1]
        fitting = [mask for mask in self._masks if getattr(given.get(mask), "shape", None) == size]
        fitting = fitting or [mask for mask in self._masks if given.get(mask) is None]
        if len(fitting) != 1:
            raise OptionError(
                f"buckets pads {name!r}, and {len(fitting)} inputs may be its mask: "
                f"{', '.join(fitting or self._masks)}. State which: buckets={{{name!r}: "
                f"({self._buckets[name].multiple}, 'the name of the mask')}}."
            )
        return fitting[0]

    def _longer(
        self, name: str, mask: str, given: Mapping[str, Any], more: int
    ) -> dict[str, torch.Tensor]:
        """A prompt with more tokens, and its mask. A mask that was not given is made."""
        prompt: torch.Tensor = given[name]
        size = prompt.shape[: _TOKENS + 1]
        is_real = given.get(mask)
        if is_real is None:
            is_real = self._kept.of(
                prompt, "mask", lambda: torch.ones(size, dtype=torch.bool, device=prompt.device)
            )
        if is_real.shape != size:
            raise OptionError(
                f"buckets pads {name!r} of the shape {tuple(prompt.shape)}, but its mask {mask!r} "
                f"has the shape {tuple(is_real.shape)} instead of {tuple(size)}."
            )
        padded = {}
        for tensor_name, tensor in ((name, prompt), (mask, is_real)):
            pad = functools.partial(_with_zeros, tensor, more)
            padded[tensor_name] = self._kept.of(tensor, more, pad) if more else tensor
        return padded

    def _check(self, name: str, mask: str, given: Mapping[str, Any], more: int) -> None:
        """Check that padding changes nothing, by running the model itself three times.

        Its content must not be read at all. Its length may change how the result is rounded.
        """
        longer = {**given, **self._longer(name, mask, given, more)}
        prompt = given[name]
        again = prompt[:, torch.arange(more, device=prompt.device) % prompt.shape[_TOKENS]]
        other = {**longer, name: torch.cat([prompt, again], _TOKENS)}
        with torch.no_grad():
            plain, padded, other_padding = (
                self._module._call_impl(**each) for each in (given, longer, other)
            )
        is_exact = prompt.dtype in (torch.float32, torch.float64)
        for what, results, limit in (
            ("reads the padding", (padded, other_padding), 1e-5),
            ("depends on how many tokens are masked", (plain, padded), 1e-4 if is_exact else 0.03),
        ):
            difference = _difference(*results)
            if not difference <= limit:
                raise PabError(
                    f"buckets would change what the model returns: with {more} more tokens in "
                    f"{name!r}, masked by {mask!r}, its result {what} (difference {difference:.1e} "
                    "of the largest element). Leave buckets out, or state another mask."
                )


class _Kept:
    """Tensors that were made from other tensors, as long as these are the same.

    So a prompt that stays the same for a generation is padded once, and its padded form stays the
    same tensor, which need not be compared by value.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[int, object], tuple[weakref.ref[torch.Tensor], int, torch.Tensor]]
        self._made = {}

    def of(
        self, source: torch.Tensor, key: object, make: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """What ``make`` returns for a tensor and a key; the last result if nothing changed."""
        if source.is_inference():  # nobody can tell whether it changed
            return make()
        place = (id(source), key)
        found = self._made.get(place)
        if found is not None and found[0]() is source and found[1] == source._version:
            return found[2]
        self._made.pop(place, None)
        while len(self._made) >= _KEPT:
            self._made.pop(next(iter(self._made)), None)
        made = make()
        self._made[place] = (weakref.ref(source), source._version, made)
        return made


def _with_zeros(tensor: torch.Tensor, more: int) -> torch.Tensor:
    """A tensor with more tokens. They are 0, and False in a mask."""
    size = list(tensor.shape)
    size[_TOKENS] = more
    return torch.cat([tensor, tensor.new_zeros(size)], _TOKENS)


def _difference(one: Any, other: Any) -> float:
    """The largest difference between two results, relative to the largest element."""
    worst = 0.0
    for mine, theirs in zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True):
        if not isinstance(mine, torch.Tensor):
            continue
        if mine.shape != theirs.shape:
            return float("inf")
        scale = mine.abs().max().double().clamp(min=1e-12)
        worst = max(worst, float((mine.double() - theirs.double()).abs().max() / scale))
    return worst
