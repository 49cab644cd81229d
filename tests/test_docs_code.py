"""Every Python block of README and of ``docs/`` runs, or its page says why it cannot.

A block that follows another on its page goes on with the names of that block only if ``GOES_ON``
lists it: most blocks are alternatives. Names that no block defines are stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

import pab_compile
from helpers import servers
from helpers.captured import SmallDiT
from helpers.doc_blocks import Block, blocks_of, missing_names, read_blocks
from pab_compile.compile.lower import PieceCompiler
from pipelines.catalogue import CASES

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "integrations").rglob("*.md")),
]
BLOCKS = [block for page in PAGES for block in read_blocks(page, ROOT)]
PYTHON_LINE = re.compile(r"^ {4}.*\b(pab_compile\.\w+\(|torch\.\w+\()", re.M)

GOES_ON = ("print(p.stats())", "seen = pab_compile.observe(lambda: pipe(prompt), model")
"""Beginnings of blocks that use what the block before them made."""

COMPILED = "pipe.transformer = torch.compile(pipe.transformer, backend='pab')\n"
BEFORE = {
    "pab_compile.explain(pipe.transformer)": f"{COMPILED}pipe(prompt)\n",
    "print(p.explain())": "p = pab_compile.enable(pipe)\npipe(prompt)\n",
    "pab_compile.stats(pipe.transformer).to_html": f"{COMPILED}pipe(prompt)\n",
    "pipe(prompt))  # whole generations": COMPILED,
    'p.set("plan.json")': "pab_compile.tune(generate, texts, model=pipe.transformer, num_steps=4, "
    "computed=3, rounds=0).save('plan.json')\n",
}
"""Part of a block -> what a reader has done before."""

SMALLER = {
    '"cuda"': '"cpu"',
    "speedup=2.5, cost=cost": "max_error=10.0, cost=cost",
    "num_steps=30, computed=10": "num_steps=4, computed=3, rounds=0",
    "[(480, 832), (832, 480), (720, 1280)]": "[(32, 64), (64, 32)]",
    "torch.zeros(1, 16, 21,": "torch.zeros(1, 4, 3,",
    "torch.zeros(1, 512, 4096,": "torch.zeros(1, 7, 10,",
}
"""What a block says -> what this machine runs instead."""

LONG = ("pab_compile.precompile(", "(pipe.transformer, **inputs)", "print(p.explain())")

AFTER = {"def call(pipe, prompt, num_steps)": "assert call(pipe, prompt, 2).isfinite().all()"}
"""Part of a block -> what a reader does with it."""


class Pipe(diffusers.LattePipeline):
    """A tiny pipeline that takes a text, as the pages call it."""

    def __call__(self, prompt: str, num_inference_steps: int = 8, **given: Any) -> Any:
        case = CASES["Latte"].arguments()
        steps = {"num_inference_steps": num_inference_steps, "output_type": "latent"}
        return super().__call__(**case, **{**steps, **given})


def pipeline() -> Any:
    parts = CASES["Latte"].build()
    pipe = Pipe(None, None, None, parts.transformer, parts.scheduler)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stand_ins() -> dict[str, Any]:
    """What a reader has before the first line of a block."""
    pipe, texts = pipeline(), ["a cat", "a dog", "a fox"]
    given = CASES["Latte"].arguments()["prompt_embeds"]
    return {
        "torch": torch,
        "pab_compile": pab_compile,
        "pipe": pipe,
        "model": SmallDiT(1),
        "prompt": texts[0],
        "prompts": texts,
        "texts": texts,
        "device": "cpu",
        "generate": lambda text, num_steps: (
            pipe(
                text, num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0)
            ).frames
        ),
        "scheduler": SimpleNamespace(timesteps=torch.linspace(1, 0.1, 4)),
        "inputs": {
            "hidden_states": torch.randn(1, 4, 3, 4, 4),
            "timestep": torch.ones(1),
            "encoder_hidden_states": given,
        },
    }


def scripts() -> Iterator[Any]:
    """What runs in one piece: a block, with those that go on with its names."""
    found: list[list[Block]] = []
    for block in BLOCKS:
        if block.why_not_run:
            continue
        if block.code.startswith(GOES_ON):
            found[-1].append(block)
        else:
            found.append([block])
    for script in found:
        is_long = any(part in block.code for block in script for part in LONG)
        yield pytest.param(script, id=str(script[0]), marks=[pytest.mark.long] * is_long)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces run as they are: a page is not about kernels."""
    monkeypatch.setattr(PieceCompiler, "_run_inductor", lambda _, module, *__: module.forward)
    monkeypatch.setattr(PieceCompiler, "warm_up", lambda *_: None)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("script", list(scripts()))
def test_a_block_runs(script: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    servers.install(monkeypatch, None)
    names = stand_ins()
    with torch.no_grad():
        for block in script:
            code = block.code
            for text, smaller in SMALLER.items():
                code = code.replace(text, smaller)
            before, after = (
                "".join(more for part, more in others.items() if part in code)
                for others in (BEFORE, AFTER)
            )
            for text in (before, code, after):
                exec(compile(text, str(block), "exec"), names)


def test_every_exception_is_still_needed() -> None:
    code = "\n".join(block.code for block in BLOCKS)
    for text in (*BEFORE, *SMALLER, *AFTER, *GOES_ON, *LONG):
        assert text in code, text
    assert len(BLOCKS) >= 20


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.why_not_run], ids=str)
def test_a_block_that_does_not_run_names_only_what_exists(block: Block) -> None:
    assert missing_names(block.code) == []
    assert re.search(r"needs|downloads", block.why_not_run)


def test_no_block_hides_from_the_tests() -> None:
    indented = {str(page): PYTHON_LINE.findall(_prose(page)) for page in PAGES}
    assert {page: lines for page, lines in indented.items() if lines} == {}


def _prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def test_what_is_wrong_in_a_block_is_found() -> None:
    page = "# A\n\n<!-- not run: it needs a GPU -->\n```python\nimport torch.none, re\n"
    page += "from torch import nothing\ntorch.cuda.never()\npab_compile.enabel(pipe)\n```\n"
    (block,) = blocks_of(page, "a.md")
    assert (block.line, block.why_not_run) == (5, "it needs a GPU")
    assert missing_names(block.code) == [
        "torch.none",
        "torch.nothing",
        "torch.cuda.never",
        "pab_compile.enabel",
    ]
