"""Origin: the module and the line of the model that an op came from, for people to read."""

from __future__ import annotations

import re

from torch import fx

_PLUMBING = ("__dict__", "_modules", "_parameters", "_buffers")
_MODEL = re.compile(
    r"^L\['forward'\](\.__closure__\[\d+\]\.cell_contents)+|^[LG]\['\w+'\](\.__self__)?"
)
_AROUND_FORWARD = re.compile(
    r"\.forward(\.(func|forward|_old_forward|__closure__|cell_contents|\d+))*\.__self__"
)


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that ran this op (``blocks.0.attn1``), or ``""``."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values()]
    return short_path(paths[-1]) if paths else ""


def short_path(path: str) -> str:
    """Path within the model, of a module or weight, from Dynamo's expression for it.

    ``L['self'].__dict__['_modules']['blocks'].0.attn1`` -> ``blocks.0.attn1``. The way through a
    function that a hook puts around a module's forward ends at the same module.
    """
    dotted = re.sub(r"\['?([^\]']*)'?\]", r".\1", _MODEL.sub("", path))
    parts = _AROUND_FORWARD.sub("", dotted).split(".")
    return ".".join(part for part in parts if part and part not in _PLUMBING)


def source_line(node: fx.Node, outside: str = "") -> str:
    """Last line of Python that the op came from (``file.py:12 in forward: code``), or ``""``.

    Args:
        node: the op.
        outside: lines of files in this folder do not count.
    """
    trace = (node.meta.get("stack_trace") or "").rstrip().splitlines()
    for index in range(len(trace) - 1, -1, -1):
        line = trace[index].strip()
        if line.startswith("File "):
            where, _, function = line.removeprefix("File ").partition(", in ")
            path, _, number = where.partition(", line ")
            if outside and path.strip('"').startswith(outside):
                continue
            code = trace[index + 1].strip() if index + 1 < len(trace) else ""
            file_name = path.strip('"').rsplit("/", 1)[-1]
            return f"{file_name}:{number} in {function}: {code}"
    return ""
