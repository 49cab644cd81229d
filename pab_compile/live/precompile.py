"""``precompile``: compile a model for given sizes before the first request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pab_compile.compile.background import wait_for_background
from pab_compile.compile.progress import bar
from pab_compile.dynamo import compilation_of, leave_open
from pab_compile.errors import OptionError, PabError
from pab_compile.plans.live import NOTHING, LivePlan
from pab_compile.plans.plan import RangePlan
from pab_compile.runtime.scope import generation

from .handle import Handle

Example = Mapping[str, Any] | Callable[[], Any]

_COMPUTE = RangePlan({}, (0.0, 0.0), {})
"""Reuses nothing, but is not the plan of ``off``: the cuts of the form stay."""


def precompile(target: Any, examples: Iterable[Example]) -> None:
    """Compile a model for given inputs. Later calls with inputs of these sizes compile nothing.

    The model runs once per example. On a terminal a bar shows how many are done. Run it in the mode
    in which requests run, such as ``torch.inference_mode()``; where gradients are enabled, it uses
    ``torch.no_grad()``.

    Args:
        target: what ``enable`` returned, or a module that was compiled with ``backend="pab"``. All
            modules of a handle get the same examples.
        examples: one per size. Either the keyword arguments of the model, as requests pass them.
            Their values do not matter, but their sizes, strides and types do. Or a function without
            arguments that calls the model, such as a pipeline with one step. Dimensions that differ
            between the keyword arguments are left open at once, unless the model was compiled with
            ``dynamic=False``.

    Raises:
        OptionError: an example is neither of these, or there is none.
        PabError: the target is not compiled with this backend.
    """
    modules = target.compiled() if isinstance(target, Handle) else [target]
    given = list(examples)
    for example in given:
        if not isinstance(example, Mapping) and not callable(example):
            raise OptionError(
                "An example of precompile is a mapping of keyword arguments of the model, or a "
                f"function that calls it; got {example!r}."
            )
    if not given:
        raise OptionError("precompile got no examples: give one per size.")
    with ExitStack() as stack:
        if torch.is_grad_enabled():
            stack.enter_context(torch.no_grad())
        for module in modules:
            stack.enter_context(_computing(module))
        advance = stack.enter_context(bar("pab: compiling sizes", len(given)))
        for run in _runs(modules, given):
            with generation():
                run()
            wait_for_background()
            advance()


def _runs(modules: Sequence[Any], given: Sequence[Example]) -> Iterator[Callable[[], object]]:
    """What is run for every example."""
    inputs = [example for example in given if isinstance(example, Mapping)]
    marked = {id(example): _marked(example, inputs) for example in inputs}

    def call_all(example: Mapping[str, Any]) -> None:
        for module in modules:
            is_static = compilation_of(module).dynamic is False  # type: ignore[union-attr]
            module(**(example if is_static else marked[id(example)]))

    for example in given:
        if isinstance(example, Mapping):
            yield lambda example=example: call_all(example)
        else:
            yield example


def _marked(example: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The same arguments, in which the dimensions that others have in other sizes are open."""
    leaves, spec = pytree.tree_flatten(dict(example))
    twins = [pytree.tree_flatten(dict(other)) for other in others]
    rows = [theirs for theirs, their_spec in twins if their_spec == spec]
    marked: dict[int, Any] = {}
    for number, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in marked:
            shapes = {tuple(row[number].shape) for row in rows if _is_like(row[number], leaf)}
            sizes = zip(*shapes, strict=True)
            varying = [n for n, found in enumerate(sizes) if len(set(found)) > 1]
            marked[id(leaf)] = leave_open(leaf, varying)
    return pytree.tree_unflatten([marked.get(id(leaf), leaf) for leaf in leaves], spec)


def _is_like(other: Any, tensor: torch.Tensor) -> bool:
    return isinstance(other, torch.Tensor) and other.ndim == tensor.ndim


@contextmanager
def _computing(module: Any) -> Iterator[None]:
    """Compute everything inside a block, in the form of the plan that holds."""
    compilation = compilation_of(module)
    if compilation is None:
        raise PabError(
            f"precompile got a {type(module).__name__} that is not compiled. Give what enable or "
            'torch.compile(model, backend="pab") returned.'
        )
    live = (compilation.options or {}).get("plan")
    if not isinstance(live, LivePlan) or live.current().plan == NOTHING:
        yield
        return
    with live.use(replace(live.current(), plan=_COMPUTE)):
        yield
