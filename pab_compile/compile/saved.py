"""Saved: what was compiled, in one file for other processes and machines of the same kind.

The file is a zip archive: torch's own cache artifacts, what this library traced (``trace_store``),
and facts about where both were made. Another version of torch would not use it, and so does not
load it.
"""

from __future__ import annotations

import json
import os
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pab_compile.dynamo import inductor_cache
from pab_compile.errors import PabError
from pab_compile.report.files import whole_file

from . import trace_store
from .background import wait_for_background

_FORMAT = "pab_compile.compiled/1"
_FACTS, _ARTIFACTS, _TRACES = "facts.json", "torch.bin", "traces/"


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        num_traces: number of graphs that need not be traced again.
        artifact_bytes: bytes of torch's cache artifacts; 0 if torch had nothing to save.
    """

    num_traces: int
    artifact_bytes: int


def save_compiled(path: str | os.PathLike[str]) -> Saved:
    """Write what this process compiled, or read from the caches on disk, to a file.

    Call it after the generations, or after ``precompile``. It waits for pieces that are compiled in
    the background. The weights are not in the file.

    Args:
        path: the file. It is written as a whole.

    Returns:
        What it holds.

    Raises:
        PabError: nothing was compiled, or Inductor's cache on disk is switched off.
    """
    folder = _folder("save")
    wait_for_background()
    traces = [file for file in trace_store.used_files(folder) if file.is_file()]
    made = torch.compiler.save_cache_artifacts()
    artifacts = b"" if made is None else made[0]
    if not traces and not artifacts:
        raise PabError(
            "Nothing was compiled in this process, so there is nothing to save. Run a generation, "
            "or precompile, first."
        )
    with whole_file(Path(path)) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_FACTS, json.dumps({"format": _FORMAT, **_facts()}))
        archive.writestr(_ARTIFACTS, artifacts)
        for file in traces:
            archive.write(file, _TRACES + file.name)
    return Saved(len(traces), len(artifacts))


def load_compiled(path: str | os.PathLike[str]) -> Saved:
    """Put what another process compiled into the caches of this one.

    Call it before the model runs for the first time. Torch's artifacts are pickles, which can run
    code: load only files that you trust.

    Args:
        path: a file of ``save_compiled``.

    Returns:
        What it held.

    Raises:
        PabError: the file is none of ``save_compiled``, or was made with other versions or on
            another kind of machine, or Inductor's cache on disk is switched off.
    """
    folder = _folder("load")
    try:
        with zipfile.ZipFile(path) as archive:
            facts = json.loads(archive.read(_FACTS))
            artifacts = archive.read(_ARTIFACTS)
            names = [name for name in archive.namelist() if name.startswith(_TRACES)]
            traces = {Path(name).name: archive.read(name) for name in names}
    except FileNotFoundError as error:
        raise PabError(f"load_compiled: {path} does not exist. Give a saved file.") from error
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise PabError(
            f"load_compiled: {path} is no file of save_compiled, or it is damaged ({error}). Save "
            "it again."
        ) from error
    _check(path, facts)
    for name, content in traces.items():
        trace_store.add_file(folder, name, content)
    if artifacts:
        torch.compiler.load_cache_artifacts(artifacts)
    return Saved(len(traces), len(artifacts))


def _folder(verb: str) -> str:
    folder = inductor_cache()
    if folder is None:
        raise PabError(
            f"There is nothing to {verb}: Inductor's cache on disk is switched off. Unset "
            "TORCHINDUCTOR_FORCE_DISABLE_CACHES and torch.compiler.config.force_disable_caches."
        )
    return folder


def _check(path: str | os.PathLike[str], facts: object) -> None:
    """Refuse what another version made."""
    if not isinstance(facts, Mapping) or facts.get("format") != _FORMAT:
        raise PabError(f"load_compiled: {path} has another format than {_FORMAT}. Save it again.")
    here = _facts()
    differ = [
        f"{name} {facts.get(name)} (here {here[name]})"
        for name in here
        if facts.get(name) != here[name]
    ]
    if differ:
        raise PabError(
            f"load_compiled: {path} was made with {', '.join(differ)}. Nothing of it would be "
            "used. Save one file for each of them."
        )


def _facts() -> dict[str, str]:
    """What a saved file depends on."""
    devices = {torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "devices": ", ".join(sorted(devices)) or "cpu",
    }
