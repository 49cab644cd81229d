"""The commands of ``pab``, run in this process with eager pieces."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderKL, LattePipeline

from pab_compile.cli import exits, main, precompile, report
from pab_compile.compile.saved import Saved
from pab_compile.plans.tuned_model import TunedModel
from pab_compile.report import files
from pipelines.catalogue import CASES

SOURCE = """
import torch
from helpers.captured import SmallDiT

prompts = [1, 2, 3]

def load():
    torch.manual_seed(0)
    return SmallDiT(1).requires_grad_(False)

def call(model, prompt, num_steps):
    latents = torch.randn(2, 4, 3, 2, 5, generator=torch.Generator().manual_seed(prompt))
    words = torch.ones(2, 7, 4)
    for timestep in torch.linspace(1, 1 / num_steps, num_steps):
        latents = latents - model(latents, timestep.expand(2), words) / num_steps
    return latents

def frames(model, result):
    return result[0].flatten(0, 1)

measures = {"worst": lambda video, other: (video - other).abs().max()}
"""
INPUTS = """
def inputs(model):
    return {"latents": torch.randn(2, 4, 3, 2, 5), "timestep": torch.rand(2),
            "prompt": torch.randn(2, 7, 4)}
"""
EAGER = ("--options", '{"inner": "eager"}')


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "source.py"
    path.write_text(SOURCE)
    return str(path)


def content(capsys: Any, *arguments: str, code: int = exits.OK) -> Any:
    """What a command prints with ``--json``."""
    capsys.readouterr()
    assert main.main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_explain_runs_the_model_or_takes_its_inputs(source: str, capsys: Any) -> None:
    ran = content(capsys, "explain", source, "--plan", "pab246", *EAGER)
    Path(source).write_text(SOURCE + INPUTS)
    shown = content(capsys, "explain", source, "--plan", "pab246", *EAGER)
    for found in (ran, shown):
        sites = found["model"]["sites"]
        assert [site["range"] for site in sites if site["kind"] == "spatial"] == [2]
    assert [site["name"] for site in ran["model"]["sites"]] == [
        site["name"] for site in shown["model"]["sites"]
    ]


def test_report_writes_a_page_with_speed_and_quality(
    source: str, tmp_path: Path, capsys: Any
) -> None:
    page = tmp_path / "out" / "page.html"
    given = ("--steps", "12", "--baseline", "--curves", "-o", str(page), *EAGER)
    found = content(capsys, "report", source, *given)
    text = page.read_text()
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == ["without reuse", "balanced"]
    assert len(found["curves"]["model"]["spatial"]) == 12
    assert text.count("<polyline") == len(found["curves"]["model"])
    assert found["pages"] == [str(page)]
    assert found["speed"] > 0
    assert f"{found['speed']:.2f}x" in page.read_text()
    assert found["quality"] in page.read_text()
    assert "PSNR" in found["quality"]
    assert found["stats"]["model"]["steps"] == 12
    assert found["stats"]["model"]["options"]["plan"] == "balanced"
    assert "object at" not in text
    assert "&#x27;spatial&#x27;: 3" in text


def test_report_says_what_it_measured_beside_no_reuse() -> None:
    (line,) = report.beside_baseline(1.25, "31.3 dB PSNR")
    assert line == "beside stock torch.compile: 1.25x as fast; 31.3 dB PSNR between the results"
    assert report.beside_baseline(1.25, "")[0].endswith("as fast")
    assert report.beside_baseline(None, "") == []


def test_compare_measures_every_plan_and_writes_a_page(
    source: str, tmp_path: Path, capsys: Any
) -> None:
    plans, page = ("--plan", "linear2", "--plan", "off"), tmp_path / "page.html"
    given = (*plans, *EAGER, "-o", str(page))
    found = content(capsys, "compare", source, "--steps", "9", *given)
    names = ["without reuse", "linear2", "off"]
    assert "SSIM</th>" not in page.read_text()  # no result has one
    assert "coalesce=True" in page.read_text()
    assert re.findall("<figcaption>(.*?)</figcaption>", page.read_text()) == names
    assert found["page"] == str(page)
    linear, off = found["plans"]
    assert linear["reused"] > 0 == off["reused"]
    assert linear["psnr"] < off["psnr"] == 100
    assert linear["measures"]["worst"] > off["measures"]["worst"] == 0
    assert found["notes"][0].startswith("No LPIPS: ")
    assert linear["ssim"] is off["ssim"] is None  # rows and columns are fewer than a window
    assert found["prompts"] == 3


def test_tune_writes_a_plan_that_report_takes(source: str, tmp_path: Path, capsys: Any) -> None:
    plan = str(tmp_path / "plan.json")
    cost = ("--steps", "6", "--computed", "3", "--rounds", "0")
    found = content(capsys, "tune", source, *cost, "-o", plan)
    assert len(found["entries"]) == 6
    page = str(tmp_path / "page.html")
    run = content(capsys, "report", source, "--steps", "6", "--plan", plan, "-o", page, *EAGER)
    assert run["stats"]["model"]["computed_steps"]["output"] in (3, 6)


def test_a_plan_of_another_model_is_refused(source: str, tmp_path: Path, capsys: Any) -> None:
    model = TunedModel("Other", "0123", 5, (0.5,), ()).to_json()
    plan = {"format": "pab_compile.plan/2", "num_steps": 2, "cut": "output", "entries": ["C", 0]}
    (path := tmp_path / "plan.json").write_text(json.dumps({**plan, "model": model}))
    given = ("report", source, "--steps", "2", "--plan", str(path), *EAGER)
    assert main.main([*given]) == exits.REFUSED
    assert "was tuned on the model Other with 5 weights" in capsys.readouterr().err


def test_precompile_runs_every_prompt_and_saves_what_was_compiled(
    source: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert content(capsys, "precompile", source, *EAGER)["saved"] is None
    saved: list[Path] = []

    def save(path: Path) -> Saved:
        saved.append(path)
        return Saved(num_traces=2, artifact_bytes=1024)

    monkeypatch.setattr(precompile, "save_compiled", save)
    found = content(capsys, "precompile", source, "-o", str(tmp_path / "saved"), *EAGER)
    assert (found["calls"], found["traces"], found["artifact_bytes"]) == (3, 2, 1024)
    assert saved == [tmp_path / "saved"]


def test_doctor_finds_the_backend_and_tests_it(capsys: Any) -> None:
    found = content(capsys, "doctor", "--inner", "eager")
    assert found["torch.compile"]["backend pab"] == "found"
    assert set(found["checks"].values()) == {"ok"}
    assert len(found["checks"]) == 3
    assert found["versions"]["torch"]


def test_doctor_fails_where_torch_compile_is_switched_off(
    capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    found = content(capsys, "doctor", "--no-self-test", code=exits.FAILED)
    assert "TORCH_COMPILE_DISABLE" in found["checks"]["torch.compile is switched on"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], exits.USAGE, "exit codes: 0 done"),
        (["explain"], exits.USAGE, "Give a Python file, or --pipeline PATH"),
        (["explain", "none.py"], exits.USAGE, "none.py: there is no such file"),
        (["report", "--pipeline", "."], exits.USAGE, "has no model_index.json"),
        (["report", "SOURCE", "--plan", "fasst"], exits.REFUSED, "Did you mean 'fast'?"),
        (["tune", "SOURCE", "--computed", "3", "--prompts", "x"], exits.USAGE, "--prompts x"),
        (
            ["tune", "SOURCE", "--computed", "3", "--prompt", "a"],
            exits.USAGE,
            "needs at least 3 prompts",
        ),
    ],
)
def test_what_is_wrong_is_said_with_an_exit_code(
    arguments: list[str], code: int, words: str, source: str, capsys: Any
) -> None:
    assert main.main([source if one == "SOURCE" else one for one in arguments]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""


def test_a_file_without_what_is_needed_is_refused(source: str, capsys: Any) -> None:
    cases = {
        "": (exits.USAGE, "no function load()"),
        SOURCE.partition("def call")[0]: (exits.USAGE, "no function call(target, prompt"),
        "load = int": (exits.REFUSED, "Nothing denoises in an int"),
    }
    for text, (code, words) in cases.items():
        Path(source).write_text(text)
        assert main.main(["report", source]) == code
        assert words in capsys.readouterr().err


def test_ctrl_c_leaves_the_old_file_and_nothing_else(
    source: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(page, "new")
    assert page.read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "source.py"}
    for name in main.COMMANDS:
        monkeypatch.setattr(importlib.import_module(f"pab_compile.cli.{name}"), "run", interrupted)
        arguments = {"doctor": [], "tune": [source, "--computed", "3"]}.get(name, [source])
        assert main.main([name, *arguments]) == exits.INTERRUPTED
        assert "interrupted" in capsys.readouterr().err


def test_a_generation_has_at_least_one_step(source: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(["report", source, "--steps", "0"])
    assert left.value.code == exits.USAGE
    assert "0 is too few" in capsys.readouterr().err


def test_a_warning_is_printed_without_a_place_in_the_library() -> None:
    code = (
        "import sys, warnings; from pab_compile.cli import output; output.to_terminal(True);"
        "warnings.warn('pab: few steps')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "pab: warning: few steps\n"


def test_every_command_says_its_exit_codes(capsys: Any) -> None:
    for command in main.COMMANDS:
        with pytest.raises(SystemExit) as left:
            main.main([command, "--help"])
        assert left.value.code == 0
        assert "130 interrupted" in " ".join(capsys.readouterr().out.split())


CALL = """
import torch

prompts = [1]

def call(pipe, prompt, num_steps):
    words = torch.ones(1, 7, 10)
    noise = torch.Generator().manual_seed(prompt)
    return pipe(prompt_embeds=words, negative_prompt_embeds=words, negative_prompt=None,
                clean_caption=False, height=64, width=96, video_length=3, generator=noise,
                num_inference_steps=num_steps, output_type="latent").frames
"""


STATED = """
arguments:
  prompt_embeds: {size: [1, 7, 10], fill: 1}
  negative_prompt_embeds: {size: [1, 7, 10], fill: 1}
  negative_prompt: null
  clean_caption: false
  height: 64
  width: 96
  video_length: 3
prompts: 1
"""


def test_a_folder_of_diffusers_is_loaded_without_a_warning(tmp_path: Path, capsys: Any) -> None:
    parts = CASES["Latte"].build()
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    vae = AutoencoderKL(3, 3, down, up, block_out_channels=(4,) * 4, norm_num_groups=4)
    pipe = LattePipeline(None, None, vae, parts.transformer, parts.scheduler)  # type: ignore[arg-type]
    pipe.save_pretrained(tmp_path / "pipe")
    for name, text in (("call.py", CALL), ("call.yaml", STATED)):
        (tmp_path / name).write_text(text)
        given = ("--pipeline", str(tmp_path / "pipe"), "--call", str(tmp_path / name))
        found = content(capsys, "explain", *given, "--dtype", "float32", *EAGER)
        assert {site["kind"] for site in found["transformer"]["sites"]} >= {"spatial", "temporal"}


def test_the_command_lines_of_the_pages_are_accepted() -> None:
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *(root / "docs").glob("*.md"), root / "examples/command_line.py"]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    commands = [line.strip() for line in lines if re.match(r" *pab [a-z]+ .*[-/]", line)]
    assert len(commands) >= 8
    for command in commands:
        main.parser().parse_args(shlex.split(command)[1:])


def test_the_page_lists_every_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.M)}
    assert listed == {value for name, value in vars(exits).items() if name.isupper()}
