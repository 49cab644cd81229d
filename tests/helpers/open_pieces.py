"""A small piece for open sizes."""

from __future__ import annotations

import torch
from torch import fx

from pab_compile.passes.graph import ir
from pab_compile.passes.graph.open_sizes import OpenSizes
from pab_compile.passes.graph.opening import Opener, OpenPiece


def doubled() -> OpenPiece:
    """A piece that doubles a tensor of an open number of rows."""
    opened = OpenSizes.begin(["rows"], [5])
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.ops.aten.mul.Tensor, (x, 2))
    graph.output((y,))
    rows = opened.size(opened.symbols[0])
    for node in (x, y):
        with opened.mode:
            ir.set_value(node, torch.empty(5, 3))
        ir.set_layouts(node, [ir.Layout((rows, 3), (3, 1))])
    closed = fx.GraphModule(torch.nn.Module(), graph)
    opener = Opener(opened)
    piece = opener.piece(closed, list(opener.inputs_of(closed).values()))
    assert piece is not None
    return piece
