"""What really runs: attention modules by hooks, attention calls by a spy, without a compiler."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F

from pab_compile import Explanation

from .build import run
from .spec import Dit


@dataclass
class Truth:
    """What one forward did.

    Attributes:
        modules: path -> calls of every attention module of ``Dit.kinds``.
        kinds: kind -> attention modules that ran.
        sdpa: (path of the attention module that it ran in or None, query length, key length) of
            every call of scaled_dot_product_attention.
    """

    modules: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    sdpa: list[tuple[str | None, int, int]] = field(default_factory=list)


def attention_modules(model: torch.nn.Module, dit: Dit) -> dict[str, torch.nn.Module]:
    """Path -> module of every attention module that the description names, outermost only."""
    found: dict[str, torch.nn.Module] = {}
    for path, module in model.named_modules():
        inside = any(path.startswith(outer + ".") for outer in found)
        if not inside and dit.kind_of(path) is not None:
            found[path] = module
    return found


def observe(model: torch.nn.Module, dit: Dit, **inputs: Any) -> Truth:
    """Run once and note which attention modules ran, and every attention call."""
    truth = Truth()
    running: list[str] = []
    handles = []
    for path, module in attention_modules(model, dit).items():

        def enter(*_: Any, path: str = path) -> None:
            running.append(path)
            truth.modules[path] += 1
            truth.kinds[dit.kind_of(path) or ""] += 1

        def leave(*_: Any) -> None:
            running.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave))
    try:
        with _spy(truth, running):
            run(model, **inputs)
    finally:
        for handle in handles:
            handle.remove()
    return truth


@contextmanager
def _spy(truth: Truth, running: list[str]) -> Iterator[None]:
    real = F.scaled_dot_product_attention

    def spied(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        truth.sdpa.append((running[-1] if running else None, query.shape[-2], key.shape[-2]))
        return real(query, key, *args, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", spied):
        yield


def true_counts(truth: Truth, dit: Dit) -> dict[str, int]:
    """Kind -> sites to be found: attention modules that ran and whose results count."""
    kinds = truth.kinds.copy()
    left_out = [pattern for pattern in (dit.unused, dit.unseen) if pattern]
    for path, calls in truth.modules.items():
        if any(re.search(pattern, path) for pattern in left_out):
            kinds[dit.kind_of(path) or ""] -= calls
    return {kind: number * dit.streams for kind, number in sorted(kinds.items()) if number}


def assert_found(explanation: Explanation, truth: Truth, dit: Dit) -> None:
    """The compiler found what really runs."""
    wrong = [
        f"{site.name} is {dit.kind_of(site.module)}, not {site.kind}: {site.reason}"
        for site in explanation.sites
        if site.kind != "mlp" and dit.kind_of(site.module) not in (None, site.kind)
    ]
    assert not wrong, "\n".join(wrong)
    assert explanation.counts() == true_counts(truth, dit), str(explanation)
    assert explanation.num_graphs == dit.graphs
    assert not dit.computed or any(dit.computed in note for note in explanation.notes)
    mechanisms = {s.kind: s.mechanism for s in explanation.sites if s.kind != "mlp"}
    assert mechanisms == {kind: dit.mechanism.get(kind, "sdpa") for kind in mechanisms}
