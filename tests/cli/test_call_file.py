"""Files that state how to call a pipeline or a model, with ``pab ... --call``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pab_compile.cli import exits, main
from pab_compile.cli.call_file import read_call_file
from pipelines.catalogue import CASES

MODEL = """
import torch
from helpers.captured import SmallDiT

def load():
    torch.manual_seed(0)
    return SmallDiT(1).requires_grad_(False)
"""
OF_MODEL = """
arguments:
  prompt: {size: [2, 7, 4], fill: 1}
latents: {argument: latents, size: [2, 4, 3, 2, 5]}
timestep: {argument: timestep, first: 1, last: 0}
prompts: 2
seed: 5
steps: 9
"""
OF_PIPELINE = """
arguments:
  prompt_embeds: {size: [1, 7, 10]}
  negative_prompt_embeds: {size: [1, 7, 10], fill: 0}
  negative_prompt: null
  clean_caption: false
  height: 64
  width: 96
  video_length: 3
prompts: 2
steps: 8
"""
EAGER = ("--options", '{"inner": "eager"}')


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "model.py").write_text(MODEL)
    return tmp_path / "model.py"


def run(capsys: Any, command: str, source: Path, stated: str, *more: str, code: int = 0) -> str:
    """What a command prints: its JSON, or what is wrong."""
    call = source.with_name("call.yaml")
    call.write_text(stated)
    capsys.readouterr()
    given = (command, str(source), "--call", str(call), "--json", *more)
    assert main.main(given) == code
    said = capsys.readouterr()
    return said.out if code == 0 else said.err


def test_a_model_runs_as_a_file_states(source: Path, tmp_path: Path, capsys: Any) -> None:
    shown = json.loads(run(capsys, "explain", source, OF_MODEL, *EAGER))
    assert {"spatial", "cross"} <= {site["kind"] for site in shown["model"]["sites"]}
    page = str(tmp_path / "page.html")
    given = ("--plan", "linear2", "-o", page, *EAGER)
    found = json.loads(run(capsys, "report", source, OF_MODEL, *given))
    assert found["stats"]["model"]["steps"] == 9
    assert not found["stats"]["model"]["notes"]  # the schedule is visible
    given = ("--plan", "linear2", "-o", page, "--steps", "6", *EAGER)
    found = json.loads(run(capsys, "report", source, OF_MODEL, *given))
    assert found["stats"]["model"]["steps"] == 6


def test_prompts_differ_in_their_noise_and_are_the_same_at_every_run(source: Path) -> None:
    code: dict[str, Any] = {}
    exec(source.read_text(), code)
    model = code["load"]()
    call = source.with_name("call.json")
    stated = {"latents": {"argument": "latents", "size": [2, 4, 3, 2, 5]}}
    stated |= {"timestep": {"argument": "timestep", "first": 1}, "seed": 3}
    stated |= {"arguments": {"prompt": {"size": [2, 7, 4], "dtype": "float32"}}}
    call.write_text(json.dumps(stated))
    generate = read_call_file(call).call_of(model, [0, 1])
    with torch.no_grad():
        first, again, other = (generate(model, prompt, 3) for prompt in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_pipeline_is_called_as_a_file_states(tmp_path: Path) -> None:
    pipe = CASES["Latte"].build()
    pipe.set_progress_bar_config(disable=True)
    (call := tmp_path / "call.yaml").write_text(OF_PIPELINE)
    generate = read_call_file(call).call_of(pipe, [0, 1])
    with torch.no_grad():
        first, other = (generate(pipe, prompt, 2) for prompt in (0, 1))
    assert first.shape[-2:] == (8, 12)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("argments: {}", "the file has no key 'argments'. Did you mean 'arguments'?"),
        ("[1, 2]", "the file holds names with values"),
        ("a: [", "cannot be read: while parsing"),
        ("arguments: 3", "arguments holds names with values"),
        ("arguments: {x: {size: 3}}", "arguments: x: size is a list of whole numbers; got 3"),
        ("arguments: {x: {size: [1, -1]}}", "size is a list of whole numbers; got [1, -1]"),
        ("arguments: {x: {size: [1], fil: 1}}", "arguments: x has no key 'fil'. Did you mean"),
        ("arguments: {x: {dtype: int64}}", "arguments: x: size is missing"),
        ("arguments: {x: {size: [1], fill: a}}", "arguments: x: fill is a number; got 'a'"),
        ("arguments: {x: {size: [1], dtype: int64}}", "int64 has no random numbers. Give fill"),
        ("arguments: {x: {size: [1], dtype: int65}}", "arguments: x: torch has no dtype 'int65'"),
        ("dtype: float33", "torch has no dtype 'float33'"),
        ("seed: -1", "seed is a whole number from 0; got -1"),
        ("steps: 0", "steps is a whole number from 1; got 0"),
        ("prompts: a cat", "prompts is a list, or a number of them from 1; got 'a cat'"),
        ("prompt: 3", "prompt is the name of an argument, or null; got 3"),
        ("{prompts: 2, prompt: x}", "there are none for prompt: x. List them"),
        ("latents: {size: [1]}", "latents: argument is the name of an argument; got None"),
        ("latents: {argument: latents}", "latents: size is missing"),
        ("latents: {argument: latents, size: [1]}", "timestep is missing: a model needs"),
        ("timestep: {argument: t, first: x}", "timestep: first is a number; got 'x'"),
        (
            OF_MODEL.replace("prompts: 2", "prompt: prompt"),
            "prompt is for a pipeline. State a model's prompt",
        ),
        (
            OF_MODEL.replace("argument: timestep", "argument: timestp"),
            "there is no argument 'timestp'. Did you mean 'timestep'?",
        ),
        (
            OF_MODEL.replace("  prompt:", "  latents: 1\n  prompt:"),
            "arguments has 'latents', which another key states",
        ),
    ],
)
def test_a_wrong_key_is_named(stated: str, words: str, source: Path, capsys: Any) -> None:
    said = " ".join(run(capsys, "explain", source, stated, code=exits.USAGE).split())
    assert words in said


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("latents: {argument: x, size: [1]}", "latents is for a model, and LattePipeline is"),
        ("arguments: {generator: 1}", "arguments has 'generator', which seed states"),
        ("arguments: {num_inference_steps: 1}", "which steps states"),
        ("arguments: {hieght: 64}", "there is no argument 'hieght'. Did you mean 'height'?"),
    ],
)
def test_what_a_pipeline_does_not_take_is_named(stated: str, words: str, tmp_path: Path) -> None:
    (call := tmp_path / "call.yaml").write_text(stated)
    with pytest.raises(exits.UsageError) as refused:
        read_call_file(call).call_of(CASES["Latte"].build(), ["a cat"])
    assert words in str(refused.value)


def test_the_files_of_the_page_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
    pipeline, model = re.findall(r"```yaml\n(.*?)```", page, re.S)
    for text in (pipeline, model, pipeline.partition("prompt:")[0] + model):
        (call := tmp_path / "call.yaml").write_text(text)
        read_call_file(call)


def test_what_the_python_file_decides_is_refused_beside_it(source: Path, capsys: Any) -> None:
    said = run(capsys, "explain", source, OF_MODEL, "--dtype", "bfloat16", code=exits.USAGE)
    assert "--dtype is for --pipeline. model.py makes the model" in said
