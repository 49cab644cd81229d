"""Ops: what an executor runs, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pab_compile.report.exchanges import Exchanged

from .lazy_function import Function


@dataclass(frozen=True, eq=False)
class Op:
    """One call of a piece.

    Attributes:
        key: hash of all that the function depends on.
        function: the compiled piece.
        inputs: registers that the function reads.
        outputs: (position in the result, register to write).
        frees: registers that no later op reads.
        site: number of the branch's site, or -1.
        prelude: number of the prelude, or -1.
        cached: for a prelude, the positions to cache: those that any other piece reads.
        is_returned: whether the caller gets a value of this piece, and may write to it.
        starts: for a branch, per position in the result, the start of its stretch.
        is_demanded: whether it runs only if a value of it is needed.
        watched: number of the watched piece, or -1.
        made: for a watched piece, the registers of the tensors that Python made.
        exchanged: what this rank exchanges with others whenever the piece runs.
    """

    key: str
    function: Function
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]
    frees: tuple[int, ...]
    site: int = -1
    prelude: int = -1
    cached: tuple[int, ...] = ()
    is_returned: bool = False
    starts: tuple[Start | None, ...] = ()
    is_demanded: bool = False
    watched: int = -1
    made: tuple[int, ...] = ()
    exchanged: tuple[Exchanged, ...] = ()


@dataclass(frozen=True)
class Start:
    """The start of a stretch.

    Attributes:
        register: where it is.
        kept: type of the difference that is cached.
        end: type of the end.
    """

    register: int
    kept: torch.dtype
    end: torch.dtype
