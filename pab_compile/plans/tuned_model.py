"""The model that a plan was tuned on: what must be the same, and a sample of what may differ.

Fitted weights mean something for one architecture only: the same layers, with the same names and
sizes. Other weights of it, as of a fine-tune, may run with the plan, but its quality was not
measured with them. Neither the dtype nor a quantisation, an adapter or a wrapper of
``torch.compile`` makes another architecture.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pab_compile.errors import PlanError

_INNER = ("base_layer", "original_module")
"""Children in which adapters keep the layer that they adapt."""
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", *_INNER)
"""Names of children that are the module itself."""
_NUM_SAMPLES = 64
_ROUNDING = 1e-2  # bfloat16 rounds by up to 0.4 %
_ZERO = 1e-6

Sample = tuple[float | None, ...]
"""One element of each of some weights. None cannot be read, as of weights that are packed."""


@dataclass(frozen=True)
class TunedModel:
    """A model, as a plan file describes it.

    Attributes:
        name: of its class, for messages.
        fingerprint: hash of the names and sizes of its layers.
        num_weights: how many numbers its layers have, for messages.
        weights: a sample of them.
        adapters: a sample of the adapters that are around its layers.
    """

    name: str
    fingerprint: str
    num_weights: int
    weights: Sample
    adapters: Sample

    @staticmethod
    def of(module: torch.nn.Module) -> TunedModel:
        """What a plan file says of a module."""
        root = _unwrapped(module)
        layers = list(_layers(root))
        own = [layer for layer in layers if not layer.is_adapter]
        words = [(layer.path, layer.sizes) for layer in own]
        return TunedModel(
            type(root).__name__,
            hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16],
            sum(weight.numel() for layer in own for weight in layer.weights),
            _sample([next(iter(layer.weights), None) for layer in own]),
            _sample([w for layer in layers if layer.is_adapter for w in layer.weights]),
        )

    def misfit(self, other: TunedModel) -> str:
        """Why a plan of this model does not fit another one; ``""`` if it does."""
        if self.fingerprint == other.fingerprint:
            return ""
        return (
            f"was tuned on the model {self}, and this one is {other}: its layers have other names "
            "or sizes, so the weights of the plan mean nothing for it. Tune a plan on this model. "
            'If it is the same model in another form, as with fused layers, delete "model" from '
            "the plan file"
        )

    def has_other_weights(self, other: TunedModel) -> bool:
        """Whether the weights of another model of this architecture certainly differ."""
        return _differ(self.weights, other.weights) or _differ(self.adapters, other.adapters)

    def __str__(self) -> str:
        return f"{self.name} with {self.num_weights:,} weights (fingerprint {self.fingerprint})"

    def to_json(self) -> dict[str, Any]:
        """The content of a plan file."""
        samples = {"weights": list(self.weights), "adapters": list(self.adapters)}
        sizes = {"fingerprint": self.fingerprint, "num_weights": self.num_weights}
        return {"name": self.name, **sizes, **samples}


def tuned_model_from_json(content: Any, origin: str) -> TunedModel | None:
    """Validate what a plan file says of the model; None if it says nothing.

    Raises:
        PlanError: it is malformed.
    """
    if content is None:
        return None
    given: Mapping[str, Any] = content if isinstance(content, dict) else {}
    name, fingerprint, count = (given.get(k) for k in ("name", "fingerprint", "num_weights"))
    samples = [given.get("weights"), given.get("adapters")]
    is_named = isinstance(name, str) and isinstance(fingerprint, str) and type(count) is int
    if not is_named or not all(map(_is_sample, samples)):
        raise PlanError(
            f'{origin}: "model" needs "name", "fingerprint", "num_weights", and lists of finite '
            f'numbers "weights" and "adapters"; found {str(content)[:200]}. Was it cut short or '
            "edited?"
        )
    return TunedModel(name, fingerprint, count, *map(tuple, samples))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Layer:
    path: str
    sizes: tuple[Any, ...]
    weights: Collection[torch.Tensor]
    is_adapter: bool


def _unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside of modules that hold nothing else."""
    while not module._parameters:
        inside = [child for child in module.children() if any(True for _ in child.parameters())]
        if len(inside) != 1:
            break
        module = inside[0]
    return module


def _layers(root: torch.nn.Module) -> Iterator[_Layer]:
    """The modules that have weights of their own, in order."""
    modules = dict(root.named_modules())
    adapted = {path for path, module in modules.items() if _inner_of(module)}
    for path, module in modules.items():
        weights = [weight for weight in module._parameters.values() if weight is not None]
        features = [getattr(module, f"{side}_features", None) for side in ("in", "out")]
        is_outer = any(name in module._modules for name in _WRAPPERS)
        # Packed weights have other shapes.
        is_linear = not is_outer and all(isinstance(size, int) for size in features)
        if not weights and not is_linear:
            continue
        names = path.split(".")
        above = (".".join(names[:end]) for end in range(len(names)))
        below = zip(above, names, strict=True)
        is_adapter = path in adapted or any(
            place in adapted and child not in _INNER for place, child in below
        )
        sizes = [(n, list(w.shape)) for n, w in module._parameters.items() if w is not None]
        if is_linear:
            sizes = [*features, getattr(module, "bias", None) is not None]
        shown = ".".join(name for name in names if name not in _WRAPPERS)
        yield _Layer(shown, tuple(sizes), weights, is_adapter)


def _inner_of(module: torch.nn.Module) -> bool:
    """Whether a module adapts another one."""
    return any(name in module._modules for name in _INNER)


def _sample(weights: Sequence[torch.Tensor | None]) -> Sample:
    """The middle element of some weights, the same ones for every model of an architecture."""
    chosen: Sequence[int] = range(len(weights))
    if len(weights) > _NUM_SAMPLES:
        chosen = sorted(random.Random(0).sample(chosen, _NUM_SAMPLES))
    return tuple(_middle(weights[position]) for position in chosen)


def _middle(weight: torch.Tensor | None) -> float | None:
    is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter)
    if weight is None or not is_plain or weight.is_meta or not weight.is_floating_point():
        return None
    if not weight.numel():
        return None
    element = float(weight.detach()[tuple(size // 2 for size in weight.shape)])
    return float(f"{element:.4g}") if math.isfinite(element) else None


def _differ(ours: Sample, theirs: Sample) -> bool:
    """Whether two samples are of other weights. What cannot be read says nothing."""
    if len(ours) != len(theirs):
        return True
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    return not all(math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ZERO) for a, b in pairs)


def _is_sample(listed: Any) -> bool:
    return isinstance(listed, list) and all(
        number is None or (type(number) in (int, float) and math.isfinite(number))
        for number in listed
    )
