"""Facts about nodes: the names of modules."""

from __future__ import annotations

import pytest

from pab_compile.passes.graph.origin import short_path

CLOSURE = "__closure__[0].cell_contents"
PATHS = {
    "L['self'].__dict__['_modules']['blocks'].0.attn1": "blocks.0.attn1",
    "L['fn'].__self__.blocks.0.attn1": "blocks.0.attn1",
    f"L['self'].blocks.0.forward.func.{CLOSURE}.forward.{CLOSURE}.__self__.attn": "blocks.0.attn",
    "L['function_reference'].forward.__self__.blocks.0": "blocks.0",
    f"L['forward'].{CLOSURE}.blocks.0": "blocks.0",
    f"L['sample'].{CLOSURE}.blocks.0": "__closure__.0.cell_contents.blocks.0",
    "L['self'].forward.0.attn": "forward.0.attn",
}


@pytest.mark.parametrize("path", PATHS)
def test_a_module_has_its_path_in_the_model_whatever_hooks_are_around_it(path: str) -> None:
    assert short_path(path) == PATHS[path]
