"""Autocast inside a forward: its casts become ops of the graph.

Before::

    %region = _enter_autocast("cpu", bfloat16, ...)
    %y = linear(%x, %w)          # autocast casts %x and %w
    _exit_autocast(%region)

After::

    %y = linear(to(%x, bfloat16), to(%w, bfloat16))

What autocast casts is not written down here. Every op of a region runs on fake tensors, once under
autocast and then with casts of its inputs made explicit. Both runs must dispatch the same ops on
the same types. Otherwise the region is refused, as for an op that casts values inside of it.

If the model is called under autocast as well, all ops are made explicit. The result is then traced,
and runs, without autocast: a region that switches it off has ops that must not be cast. A graph
without regions is traced, compiled and run under the autocast around it (``as_traced``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from pab_compile.passes.errors import NotTracedError

from . import ir
from .ops import PARTS, SPLITS, VIEWS
from .origin import source_line
from .tracing import module_of

_ENTER, _EXIT = "_enter_autocast", "_exit_autocast"
_CAST = torch.ops.aten._to_copy.default
_VIEWS = VIEWS | PARTS | SPLITS | {"expand", "_unsafe_view", "alias", "detach"}


class Call(NamedTuple):
    """An op that was dispatched, the types of the tensors that it read, and what it casts."""

    op: Any
    types: tuple[torch.dtype, ...]
    cast_to: torch.dtype | None
    is_cast_of_input: bool


def has_autocast(graph: fx.Graph) -> bool:
    """Whether a graph of Dynamo switches autocast on or off."""
    return any(ir.op_name(node) == _ENTER for node in graph.nodes)


def off() -> AbstractContextManager[Any]:
    """Switch off the autocast that is on."""
    types = _types_around()
    return _without(types) if types else nullcontext()


def as_traced(captured: fx.GraphModule | None) -> AbstractContextManager[Any]:
    """What a graph runs in: without autocast if its casts are ops.

    Args:
        captured: the captured graph; None for one that could not be captured.
    """
    has_casts = captured is not None and ir.has_explicit_casts(captured)
    return off() if has_casts else nullcontext()


def same_in_thread() -> AbstractContextManager[Any]:
    """The autocast that is on now, to enter in another thread: each thread has its own."""
    types = _types_around()
    return _Contexts([torch.autocast(type_, torch.get_autocast_dtype(type_)) for type_ in types])


def _types_around() -> tuple[str, ...]:
    """The types of devices for which autocast is on."""
    if not torch.is_autocast_enabled():  # usual, and fast; it means CUDA
        return ("cpu",) if torch.is_autocast_enabled("cpu") else ()
    return tuple(type_ for type_ in ("cpu", "cuda") if torch.is_autocast_enabled(type_))


def cast_explicitly(
    static_graph: fx.GraphModule, fake_args: Sequence[torch.Tensor]
) -> fx.GraphModule:
    """A copy of a graph of Dynamo in which every region of autocast is made of plain ops.

    Args:
        static_graph: a graph whose placeholders are tensors; not modified.
        fake_args: one fake tensor per placeholder.

    Raises:
        NotTracedError: a region is not all that decides about casts, or an op cannot be expressed.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in static_graph.graph.nodes:
        values[node] = graph.node_copy(node, values.__getitem__)
    result = module_of(static_graph, graph)
    mode = next(arg.fake_mode for arg in fake_args if hasattr(arg, "fake_mode"))  # type: ignore[attr-defined]
    with torch.no_grad(), mode:
        _Explicit(result).run_all(fake_args)
    for name in (_EXIT, _ENTER):
        for node in [node for node in graph.nodes if ir.op_name(node) == name]:
            graph.erase_node(node)
    graph.lint()
    result.recompile()
    return result


class _Explicit(fx.Interpreter):
    """Runs a graph on fake tensors, and inserts the casts that autocast makes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self._around = _types_around()
        self._open: list[fx.Node] = []
        self._casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}

    def run_all(self, fake_args: Sequence[torch.Tensor]) -> None:
        """Run the graph, and leave every region that an error left open."""
        try:
            self.run(*fake_args, enable_io_processing=False)
        finally:
            for node in reversed(self._open):
                torch.amp.autocast_mode._exit_autocast(self.env[node])

    def run_node(self, n: fx.Node) -> Any:
        name = ir.op_name(n)
        if name == _ENTER:
            self._open.append(n)
        elif name == _EXIT:
            self._open.remove(n.all_input_nodes[0])
        elif (self._open or self._around) and n.op.startswith("call_"):
            self._make_explicit(n)
        return super().run_node(n)

    def _make_explicit(self, node: fx.Node) -> None:
        """Cast the inputs of an op as autocast does.

        Raises:
            NotTracedError: no casts of the inputs make the op dispatch what it does now.
        """
        given = self.fetch_args_kwargs_from_env(node)
        inputs = [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        wanted = self._dispatched(node, given, inputs)
        device, stated = self._innermost()
        low = stated if isinstance(stated, torch.dtype) else torch.get_autocast_dtype(device)
        every = {id(t): low for t in inputs if t.is_floating_point() and t.device.type == device}
        for casts in ({}, wanted.casts_of_inputs, every):
            found = self._cast_and_dispatched(node, given, casts)
            if found is not None and wanted.equals(found, low, leaves_as_they_are=casts != every):
                break
        else:
            entered = self._open[-1] if self._open else node
            raise _refused(entered, f"{ir.op_name(node)} casts values inside of it")

        def explicit(source: fx.Node) -> fx.Node:
            cast_to = casts.get(id(self.env[source]))
            return source if cast_to is None else self._cast(source, cast_to)

        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), explicit)

    def _innermost(self) -> tuple[str, Any]:
        """The type of device of the innermost autocast, and the type that it states."""
        if self._open:
            return str(self._open[-1].args[0]), self._open[-1].args[1]
        return self._around[-1], None

    def _off(self) -> _Contexts:
        """Leave autocast for a while, around the graph too."""
        return _without((*self._around, *(str(node.args[0]) for node in self._open)))

    def _dispatched(self, node: fx.Node, given: Any, inputs: Sequence[torch.Tensor]) -> _Watch:
        """What an op dispatches."""
        watch = _Watch(inputs)
        with watch:
            watch.result = getattr(self, node.op)(node.target, *given)
        return watch

    def _cast_and_dispatched(
        self, node: fx.Node, given: Any, casts: Mapping[int, torch.dtype]
    ) -> _Watch | None:
        """What an op dispatches without autocast if inputs are cast; None if it does not work."""

        def cast(leaf: Any) -> Any:
            return leaf.to(casts[id(leaf)]) if id(leaf) in casts else leaf

        with self._off():
            try:
                return self._dispatched(node, pytree.tree_map(cast, given), ())
            except RuntimeError:  # of types that do not go together
                return None

    def _cast(self, source: fx.Node, dtype: torch.dtype) -> fx.Node:
        """A cast right behind a value, made once per type."""
        key = (source, dtype)
        if key not in self._casts:
            after = source
            while source.op == "placeholder" and after.next.op == "placeholder":
                after = after.next
            with source.graph.inserting_after(after):
                self._casts[key] = source.graph.call_method("to", (source, dtype))
            self._casts[key].meta = {k: v for k, v in source.meta.items() if k != "example_value"}
            with self._off():
                self.env[self._casts[key]] = self.env[source].to(dtype)
        return self._casts[key]


class _Watch(TorchDispatchMode):
    """Records which ops are dispatched, and which of some inputs are cast.

    Attributes:
        calls: what was dispatched.
        casts_of_inputs: id of an input -> the first type that it is cast to.
        result: what the op returns.
    """

    def __init__(self, inputs: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.casts_of_inputs: dict[int, torch.dtype] = {}
        self.result: Any = None
        self._inputs = {id(tensor) for tensor in inputs}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func.namespace != "prim":  # autocast asks for devices
            read = [t.dtype for t in pytree.tree_leaves((args, kwargs)) if _is_tensor(t)]
            is_cast_of_input = func is _CAST and id(args[0]) in self._inputs
            self.calls.append(Call(func, tuple(read), kwargs.get("dtype"), is_cast_of_input))
            if is_cast_of_input:
                self.casts_of_inputs.setdefault(id(args[0]), kwargs["dtype"])
        return func(*args, **kwargs)

    def equals(self, other: _Watch, low: torch.dtype, leaves_as_they_are: bool) -> bool:
        """Whether another run, with inputs cast before, computes the same.

        Args:
            other: the other run.
            low: the type that autocast casts to.
            leaves_as_they_are: whether views before a cast must be the same too. A cast may also
                stand before the views of an input.
        """
        if self._types() != other._types():
            return False
        if leaves_as_they_are:
            without = [call for call in self.calls if not call.is_cast_of_input]
            return other.calls in (
                without,
                [c._replace(is_cast_of_input=False) for c in self.calls],
            )
        casts = [call.cast_to for call in self.calls if call.op is _CAST]
        return casts == [low] * len(casts) and _no_views(self.calls) == _no_views(other.calls)

    def _types(self) -> list[torch.dtype]:
        return [leaf.dtype for leaf in pytree.tree_leaves(self.result) if _is_tensor(leaf)]


def _no_views(calls: Sequence[Call]) -> list[Call]:
    return [c for c in calls if ir.short_name(c.op) not in _VIEWS and c.cast_to is None]


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _without(types: Sequence[str]) -> _Contexts:
    """Switches autocast off for types of devices."""
    return _Contexts([torch.autocast(type_, enabled=False) for type_ in dict.fromkeys(types)])


class _Contexts:
    """Several contexts of autocast at once."""

    def __init__(self, contexts: Sequence[torch.autocast]) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


def _refused(entered: fx.Node, why: str) -> NotTracedError:
    return NotTracedError(
        "The model switches torch.autocast on or off inside its forward "
        f"({source_line(entered) or 'source unknown'}), and the casts of this part cannot be "
        f"traced: {why}. Use autocast around the call of the model alone, or cast its weights and "
        "inputs."
    )
