"""A real pipeline on two ranks needs a generator, and then makes the video of one process.

So every example of several processes passes one.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import helpers.pipeline_cases as cases
from helpers.doc_blocks import read_blocks
from helpers.latte import assert_same
from helpers.world import World

pytestmark = pytest.mark.xdist_group("ranks")
ROOT = Path(__file__).parents[2]


def test_a_pipeline_without_a_generator_is_an_error_and_with_one_the_video_of_one_process(
    world: World,
) -> None:
    expected = cases.alone()
    for error, latents in world.run(cases.seeded, ranks=2, alone=True):
        assert error.startswith("RanksError: ") and "input 'hidden_states' (rank 0: " in error
        assert "give the pipeline a generator with one seed" in error
        assert_same(latents, expected)


def unseeded(code: str) -> list[str]:
    """Calls of a pipeline, and of what draws random numbers, without a generator."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if _draws(call) and "generator" not in [keyword.arg for keyword in call.keywords]
    ]


def _draws(call: ast.Call) -> bool:
    steps = any(keyword.arg == "num_inference_steps" for keyword in call.keywords)
    return steps or ast.unparse(call.func) in ("pipe", "torch.randn", "torch.rand", "torch.randint")


def test_examples_of_several_processes_pass_a_generator_and_say_why() -> None:
    scripts = list((ROOT / "examples").glob("torchrun_*.py"))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    blocks = [block for page in pages for block in read_blocks(page, ROOT)]
    shared = [block.code for block in blocks if "parallel" in block.page or "mesh" in block.code]
    codes = [script.read_text(encoding="utf-8") for script in scripts]
    assert len(codes) >= 3 and len(shared) > 5
    assert [found for code in (*codes, *shared) for found in unseeded(code)] == []
    reason = "torch seeds each process differently"
    assert reason in (ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert "seed each process differently" in "".join(codes)


def test_a_pipeline_without_a_generator_is_found() -> None:
    assert unseeded("torch.randn(2, generator=draw)\npipe(prompt, generator=draw)") == []
    assert len(unseeded("torch.randn(2)\npipe(prompt)\nwan(p, num_inference_steps=2)")) == 3
