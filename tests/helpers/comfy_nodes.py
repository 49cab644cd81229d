"""The node pack for ComfyUI, loaded as ComfyUI loads a folder of ``custom_nodes``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
NAME = "pab_nodes"


@contextmanager
def loaded() -> Iterator[ModuleType]:
    """The pack as the module ``pab_nodes``, which is forgotten at the end."""
    where = {"submodule_search_locations": [str(FOLDER)]}
    spec = importlib.util.spec_from_file_location(NAME, FOLDER / "__init__.py", **where)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == NAME]:
            del sys.modules[name]
