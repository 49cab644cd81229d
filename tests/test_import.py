"""What ``import pab_compile`` costs, and that every public name is found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pab_compile

MEASURE = """
import json, sys, time, torch
before = set(sys.modules)
start = time.process_time()
import pab_compile
print(json.dumps([time.process_time() - start, sorted(set(sys.modules) - before)]))
"""


def test_the_import_is_cheap_and_leaves_dynamo_and_inductor_alone() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, imported = json.loads(done.stdout)
    assert seconds < 0.2
    costly = ("torch._dynamo", "torch._inductor", "sympy", "networkx", "rich")
    assert [name for name in imported if name.startswith(costly)] == []


def test_every_public_name_is_found_and_listed() -> None:
    for name in pab_compile.__all__:
        assert getattr(pab_compile, name) is not None
    assert set(pab_compile.__all__) <= set(dir(pab_compile))
    assert pab_compile.__version__[0].isdigit()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        _ = pab_compile.explian  # type: ignore[attr-defined]
