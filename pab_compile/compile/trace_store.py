"""Trace store: what captures traced, on disk beside Inductor's cache.

A second process reads the traced graph of a model instead of tracing it again. A file is named
after all that the trace depends on: Dynamo's graph with its places in the source, layouts of the
inputs, switches of torch, and the versions of torch and of this library. A file that is damaged, or
belongs to another graph, is not used, and the log says so. Whatever cannot be written as text is
traced in every process. The files hold no weights.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import fx

import pab_compile.passes
from pab_compile.dynamo import inductor_cache
from pab_compile.passes.graph import ir
from pab_compile.passes.graph.trace import trace
from pab_compile.passes.graph.tracing import changes_torch
from pab_compile.passes.graph.written import NotWritableError, describe, read, write

_log = logging.getLogger(__name__)
_MOST_BYTES = 2**28
_FOLDER, _SUFFIX = "pab_compile", ".trace"
_used: dict[str, None] = {}  # keys of the files that this process read or wrote


def stored_trace(static_graph: fx.GraphModule, tensors: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Trace a graph as ``passes.graph.tracing.trace`` does, or read what it traced before."""
    folder = inductor_cache()
    if folder is None or changes_torch():
        return trace(static_graph, tensors)
    try:
        key = _digest(f"{_surroundings()} {describe(static_graph, tensors)}")
    except NotWritableError as error:
        _log.debug("traced in every process, since the graph has %s", error)
        return trace(static_graph, tensors)
    path = Path(folder) / _FOLDER / f"{key}{_SUFFIX}"
    _used[key] = None
    found = _load(path, key, tensors)
    if found is None:
        found = trace(static_graph, tensors)
        _store(path, key, found)
    return found


def used_files(folder: str) -> list[Path]:
    """The files that this process read or wrote, as far as it wrote them.

    Args:
        folder: Inductor's cache.
    """
    return [Path(folder) / _FOLDER / f"{key}{_SUFFIX}" for key in _used]


def add_file(folder: str, name: str, content: bytes) -> None:
    """Add a file that another process wrote. What is in it is checked when it is read.

    Args:
        folder: Inductor's cache.
        name: the name of the file, without folders.
        content: what it holds.
    """
    path = Path(folder) / _FOLDER / name
    if path.suffix == _SUFFIX and not path.exists():
        _write_whole(path, content)


def _load(path: Path, key: str, tensors: Sequence[torch.Tensor]) -> fx.GraphModule | None:
    """The graph in a file; None if there is no file, or no good one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("traced anew, since %s cannot be read: %s", path, error)
        return None
    try:
        inflate = zlib.decompressobj()
        whole = inflate.decompress(data, _MOST_BYTES).decode()
        checksum, of, text = whole.split("\n", 2)
        if of != key or checksum != _digest(text):
            raise ValueError("it is damaged, or another graph's")
        found = read(text)
        inputs = [ir.tensor(node) for node in ir.placeholders(found.graph)]
        if [_layout(each) for each in inputs] != [_layout(each) for each in tensors]:
            raise ValueError("it has other inputs")
    except Exception as error:  # whatever is wrong with it, the graph can be traced
        _log.warning("traced anew, since %s is of no use: %s", path, error)
        return None
    _log.debug("read %s", path)
    return found


def _store(path: Path, key: str, traced: fx.GraphModule) -> None:
    """Write a file, if reading it gives the same graph."""
    try:
        text = write(traced)
        if write(read(text)) != text:
            raise NotWritableError("something that is not read as it was written")
        data = zlib.compress(f"{_digest(text)}\n{key}\n{text}".encode(), 1)
        _write_whole(path, data)
    except Exception as error:  # without the file, other processes trace the graph again
        _log.info("not written to %s: %s: %s", path, type(error).__name__, error)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file that no other process sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    os.replace(made, path)


@functools.cache
def _versions() -> str:
    """The versions of Python and torch, and of what captures graphs in this library."""
    sources = hashlib.sha256()
    folder = Path(str(pab_compile.passes.__file__)).parent
    files = sorted(folder.rglob("*.py"))
    if not files:
        raise NotWritableError("passes whose source is not known")
    for file in files:
        sources.update(file.read_bytes())
    torchs = (torch.__version__, torch.version.git_version)
    return json.dumps([platform.python_version(), *torchs, sources.hexdigest()])


def _surroundings() -> str:
    """What a trace depends on besides the graph."""
    devices = ("cpu", "cuda")
    casts = [(torch.is_autocast_enabled(d), str(torch.get_autocast_dtype(d))) for d in devices]
    switches = (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.preferred_linalg_library(),
    )
    return f"{_versions()} {casts} {list(map(str, switches))}"


def _layout(tensor: torch.Tensor | None) -> tuple[object, ...]:
    if tensor is None:
        return ()
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
