"""Fixtures for every test: fresh compilers and generations, a seed, one Inductor cache.

``make test`` runs a sample of the long sweeps, ``make test-all`` (``--all``) all their cases.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from _pytest.nodeid import coerce_node_id
from hypothesis import settings

import pab_compile
from helpers.sampling import leave_out
from helpers.world import World

# Last, so that it hides no installed package: some tests read the benchmarks.
sys.path.append(str(Path(__file__).parents[1]))
# Examples take as long as the machine's other work lets them.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--all`` runs what ``long`` and ``sample`` leave out."""
    parser.addoption("--all", action="store_true", help="also the long tests, and every case")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests that share compiled code run in one worker."""
    if item.get_closest_marker("compiled_once") is not None:
        item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out, and keep the tests of one ``xdist_group`` in one worker.

    Tests of a group share what they start and capture. xdist 3.8 writes the group to ``_nodeid``,
    which pytest 9.2 no longer reads.
    """
    are_named = any("::" in argument for argument in config.args)
    if not (config.getoption("all") or are_named):
        left_out = leave_out(items)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    for item in items:
        if (grouped := vars(item).get("_nodeid")) is not None:
            item._id = coerce_node_id(grouped)


def pytest_collection_finish() -> None:
    """Keep the collector off what stays: tracing makes many objects, and few of them in circles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def _inductor_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Inductor cache for the session, shared by all workers of a parallel run."""
    outer = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if outer is None:
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(shared / "inductor_cache")
    yield
    if outer is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    """Tiny models gain nothing from threads, and results must not depend on their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _unmeasured_guards() -> Iterator[None]:
    """Dynamo times the guards of all that it compiles, with a flushed cache, for its logs only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._dynamo.guards.profile_guard_manager", lambda *_: 0.0, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _quiet_traces() -> None:
    """torch logs a line per structured trace, which would fill the report of a failing test."""
    logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(scope="session")
def runs_all(pytestconfig: pytest.Config) -> bool:
    """Whether also the long tests run."""
    return pytestconfig.getoption("--all")


@pytest.fixture(scope="session")
def world(runs_all: bool) -> Iterator[World]:
    """Processes that form a group, started when first asked for."""
    found = World(4 if runs_all else 2)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def _fresh_state(_compiled_once: bool) -> Iterator[None]:
    """No compiled code and no running generation is left over from another test.

    Dynamo's tracing is what most tests wait for, so modules that test many generations of one
    compiled model are marked ``compiled_once``: only their first test of an option compiles.
    """
    if not _compiled_once:
        torch._dynamo.reset()
    pab_compile.reset()
    torch.manual_seed(0)
    yield
    pab_compile.reset()
    if not _compiled_once:
        torch._dynamo.reset()


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the module's tests share compiled code."""
    is_marked = request.node.get_closest_marker("compiled_once") is not None
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64 if is_marked else 8):
        yield is_marked
    torch._dynamo.reset()
