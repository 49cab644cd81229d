"""Axis inference: any chain of rearrangements."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.axes_of import named


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, Any]], list[list[int]]]:
    """Sizes of five axes, some rearrangements, and which axes every dimension then is."""
    sizes = tuple(draw(st.lists(st.sampled_from([2, 2, 3, 4]), min_size=5, max_size=5)))
    dims = [[axis] for axis in range(5)]
    steps: list[tuple[str, Any]] = []

    def shape() -> list[int]:
        return [_count(dim, sizes) for dim in dims]

    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["permute", "join", "part", "double", "cut"]))
        at = draw(st.integers(0, len(dims) - 1))
        if kind == "permute":
            order = draw(st.permutations(range(len(dims))))
            dims = [dims[i] for i in order]
            steps.append(("permute", order))
        elif kind == "join" and at + 1 < len(dims):
            dims[at : at + 2] = [dims[at] + dims[at + 1]]
            steps.append(("reshape", shape()))
        elif kind == "part" and len(dims[at]) > 1:
            where = draw(st.integers(1, len(dims[at]) - 1))
            dims[at : at + 1] = [dims[at][:where], dims[at][where:]]
            steps.append(("reshape", shape()))
        elif kind in ("double", "cut"):
            total = shape()[at]
            steps.append((kind, (at, total, draw(st.integers(1, total)))))
    return sizes, steps, dims


def _count(dim: list[int], sizes: tuple[int, ...]) -> int:
    count = 1
    for axis in dim:
        count *= sizes[axis]
    return count


def _apply(x: torch.Tensor, kind: str, what: Any) -> torch.Tensor:
    if kind == "permute":
        return x.permute(what)
    if kind == "reshape":
        return x.reshape(what)
    at, total, place = what
    if kind == "double":  # with something else beside it, and without it again
        return torch.cat([x * 2, x], at).narrow(at, total, total)
    return torch.cat([x.narrow(at, 0, place), x.narrow(at, place, total - place)], at)


@settings(max_examples=60, deadline=None)
@given(chains())
def test_any_chain_of_rearrangements_names_what_it_made(chain: Any) -> None:
    sizes, steps, dims = chain

    def model(latents):
        x = latents
        for kind, what in steps:
            x = _apply(x, kind, what)
        return x

    assert named(model, latents=sizes) == ", ".join("*".join("bcthw"[a] for a in d) for d in dims)
