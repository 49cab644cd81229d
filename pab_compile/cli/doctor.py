"""``pab doctor``: versions, devices, compilers, caches on disk, and a self-test."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pab_compile.dynamo import inductor_cache_folder, known_backends, why_uncompiled
from pab_compile.report.draw import format_bytes
from pab_compile.report.text import width, wrapped

from .exits import FAILED, OK
from .output import progress, say
from .self_test import self_test

_PACKAGES = ("pab_compile", "torch", "triton", "diffusers", "transformers", "accelerate", "rich")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--no-self-test", action="store_true", help="compile nothing")
    parser.add_argument(
        "--inner", default="inductor", help="compiler of the self-test (default: inductor)"
    )


def run(given: argparse.Namespace) -> int:
    """Look, and check."""
    checks = _checks()
    if not given.no_self_test:
        progress("the self-test compiles a tiny model")
        checks |= _tested(given.inner)
    facts: dict[str, Any] = {
        "versions": _versions(),
        "devices": _devices(),
        "torch.compile": _compilers(),
        "cache on disk": _cache(),
        "checks": checks,
    }
    say("\n".join(_lines(facts)), facts, given.json)
    return FAILED if any(found != "ok" for found in checks.values()) else OK


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> dict[str, str]:
    found = {"cpu": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        found[f"cuda:{number}"] = f"{name}, {format_bytes(free)} of {format_bytes(total)} free"
    return found


def _compilers() -> dict[str, str]:
    compiler = os.environ.get("CXX") or next(
        (name for name in ("g++", "clang++", "c++") if shutil.which(name)), ""
    )
    return {
        "backend pab": "found" if "pab" in known_backends() else "not found",
        "C++ compiler": compiler or "none: Inductor needs one for a CPU",
        "Triton": "found" if find_spec("triton") else "none: Inductor needs it for a GPU",
        "switched off": why_uncompiled() or "no",
    }


def _cache() -> dict[str, str]:
    folder = Path(inductor_cache_folder())
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"folder": str(folder), "files": str(len(sizes)), "size": format_bytes(sum(sizes))}


def _checks() -> dict[str, str]:
    found = "pab" in known_backends()
    missing = "not found: install pab_compile with pip, so that its entry point is registered"
    off = why_uncompiled()
    return {
        'torch.compile finds backend="pab"': "ok" if found else missing,
        "torch.compile is switched on": f"{off}" if off else "ok",
    }


def _tested(inner: str) -> dict[str, str]:
    start = time.perf_counter()
    try:
        wrong = self_test(inner)
    except Exception as error:  # whatever it is, it is what this machine does with a model
        wrong = {"self-test": f"{type(error).__name__}: {error}"}
    seconds = time.perf_counter() - start
    return wrong or {f"self-test ({inner}, {seconds:.1f} s)": "ok"}


def _lines(facts: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for title, content in facts.items():
        lines.append(title)
        column = max(map(len, content))
        if column > width() // 2:  # values stand below their names
            names, indent = {name: f"  {name}: " for name in content}, " " * 4
        else:
            names = {name: f"  {name.ljust(column)}  " for name in content}
            indent = " " * (column + 4)
        for name, value in content.items():
            lines += wrapped(f"{names[name]}{value}", indent)
    return lines
