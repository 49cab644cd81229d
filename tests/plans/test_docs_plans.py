"""The code of docs/plans.md, run, and the plan files of the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import fx

from helpers.latte import Loop, assert_same, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from helpers.oracle import Oracle, Rule
from pab_compile.passes.sites.site import Site
from pab_compile.plans.plan_file import plan_from_json

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "plans.md").read_text(encoding="utf-8")


def plans_of_the_page() -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return "\n".join(block for block in blocks if "(site, step, num_steps, timestep)" in block)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the page defines."""
    found: dict[str, Any] = {}
    exec(plans_of_the_page(), found)
    return found


@pytest.fixture
def plan(names: dict[str, Any]) -> Callable[..., int | None]:
    return names["pyramid_with_mlps"]


def mlp(name: str) -> Site:
    node = fx.Graph().placeholder("x")
    return Site(name, "mlp", "mlp", name, (), (), (node,), (node,), 0, 0, "")


@pytest.mark.sample("12")
@pytest.mark.parametrize("num_steps", [12, 30])
def test_mlps_are_broadcast_at_any_number_of_steps(
    plan: Callable[..., int | None], num_steps: int
) -> None:
    model = tiny_latte(depth=1)
    rule = Rule({"spatial": 2, "temporal": 4, "cross": 6, "mlp": 3}, (0.15, 0.85))
    timesteps = ddim_timesteps(num_steps)
    expected = Loop(Oracle(model, rule), timesteps).run()
    assert_same(Loop(calls_of(compiled_pab(model, plan=plan)), timesteps).run(), expected)


def test_only_the_first_five_blocks_are(plan: Callable[..., int | None]) -> None:
    answers = [plan(mlp(f"blocks.{index}.ff.net.2"), 7, 12, None) for index in range(7)]
    assert answers == [0] * 5 + [None] * 2
    assert plan(mlp("blocks.12"), 7, 12, None) is None


@pytest.mark.parametrize(
    ("num_steps", "reused"), [(4, [3]), (8, [5, 7]), (12, [7, 9, 11]), (5, [3])]
)
def test_every_second_step_of_the_later_half_is_reused(
    names: dict[str, Any], num_steps: int, reused: list[int]
) -> None:
    later_half = names["later_half"]
    found = [later_half(mlp("blocks.0"), step, num_steps, None) for step in range(num_steps)]
    assert found == [1 if step in reused else None for step in range(num_steps)]


@pytest.mark.parametrize("name", ["plans.md", "tuning.md"])
def test_the_file_of_the_page_is_a_plan(name: str) -> None:
    (written,) = re.findall(r"```json\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
    assert plan_from_json(json.loads(written), "the page").num_steps == 4
