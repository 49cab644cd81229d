"""Which operations of a model lie outside of its blocks: what every step has to compute."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from pab_compile.passes.graph.origin import module_path

from .flex import counting_flex_attention


class Blocks:
    """The blocks of a model: the entries of its lists of modules that lie in no other list.

    Args:
        model: the model.
        attentions: paths of the attention modules. A list without any holds no blocks. None: every
            list holds blocks.
    """

    def __init__(self, model: torch.nn.Module, attentions: Collection[str] | None = None) -> None:
        named = dict(model.named_modules())
        self._paths = list(named)
        lists = [n for n, module in named.items() if isinstance(module, torch.nn.ModuleList)]
        if attentions is not None:
            lists = [n for n in lists if any(path.startswith(f"{n}.") for path in attentions)]
        self._lists = [n for n in lists if not any(n.startswith(f"{outer}.") for outer in lists)]

    def contain(self, path: str) -> bool:
        """Whether a module is a block or a part of one."""
        return any(path.startswith(f"{name}.") for name in self._lists)

    def may_contain(self, node: fx.Node, is_one_graph: bool) -> bool:
        """Whether an op may lie in a block. It does not if a module outside of them ran it.

        Args:
            node: the op.
            is_one_graph: whether Dynamo made one graph of the forward. Behind a break, the path of
                a module may begin at the module in which Dynamo went on.
        """
        if not node.meta.get("nn_module_stack"):
            return True
        path = module_path(node)
        found = [path] if path in self._paths else []
        if not is_one_graph:
            found += [name for name in self._paths if name.endswith(f".{path}")]
        return not found or any(map(self.contain, found))

    def share(self, counter: FlopCounterMode) -> float:
        """The share of the operations of one call that is in the blocks.

        Args:
            counter: it has counted one call of the model.
        """
        counts = {
            name.partition(".")[2]: sum(count.values())
            for name, count in counter.get_flop_counts().items()
        }
        inside = {name: count for name, count in counts.items() if self.contain(name)}
        outermost = [
            count
            for name, count in inside.items()
            if not any(name.startswith(f"{other}.") for other in inside)
        ]
        return sum(outermost) / counter.get_total_flops()


class Counted:
    """The operations that ran since the last reset, as torch's own counter counts them.

    Attributes:
        total: all of them.
        in_blocks: those of ops that may lie in a block.

    Args:
        blocks: the blocks of the model that runs.
        is_one_graph: whether its forward is one graph.
    """

    def __init__(self, blocks: Blocks, is_one_graph: bool) -> None:
        self._blocks = blocks
        self._is_one_graph = is_one_graph
        self.reset()

    def reset(self) -> None:
        """Count from 0."""
        self.total = self.in_blocks = 0

    def inner(self, graph_module: fx.GraphModule, _: Any) -> Callable[..., Any]:
        """An inner compiler that runs pieces op by op, and counts."""

        def function(*args: torch.Tensor) -> Any:
            with counting_flex_attention(), FlopCounterMode(display=False) as counter:
                return _Counting(graph_module, self, counter).run(*args)

        return function

    def add(self, node: fx.Node, operations: int) -> None:
        """Count one op."""
        self.total += operations
        if operations and self._blocks.may_contain(node, self._is_one_graph):
            self.in_blocks += operations


class _Counting(fx.Interpreter):
    """Runs a graph and tells the operations of every op."""

    def __init__(
        self, graph_module: fx.GraphModule, counted: Counted, counter: FlopCounterMode
    ) -> None:
        super().__init__(graph_module)
        self._counted = counted
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self._counted.add(n, self._counter.get_total_flops() - before)
        return result
