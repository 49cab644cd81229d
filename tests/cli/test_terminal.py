"""Real processes: Ctrl-C in the middle of a command, and terminals of several widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.terminal import Running, lines_of
from pab_compile.cli import exits

SOURCE = """
import os, time
from pathlib import Path

import torch
from pab_compile.cli.self_test import _Tiny
from torch._dynamo import register_backend

HERE = Path(__file__).parent
AT = {at}
calls = 0
prompts = [1, 2, 3]

def hang():
    (HERE / "hangs").touch()
    time.sleep(120)

@register_backend
def hanging(graph_module, inputs):
    hang()

def load():
    torch.manual_seed(0)
    return _Tiny().eval().requires_grad_(False)

def call(model, prompt, num_steps):
    global calls
    calls += 1
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(prompt))
    for step, timestep in enumerate(torch.linspace(1, 1 / num_steps, num_steps)):
        if calls == AT and step == 1:
            hang()
        latents = latents - model(latents, timestep[None]) / num_steps
    return latents
"""
# Where ranks run too: the process that others are forked from is started once.
pytestmark = pytest.mark.xdist_group("ranks")
EAGER = ("--options", '{"inner": "eager"}')
HANGING = ("--options", '{"inner": "hanging"}')
COMMANDS = {
    "report": ("--steps", "4", "-o", "FILE", *EAGER),
    "compare": ("--steps", "4", "--plan", "linear2", "-o", "FILE", *EAGER),
    "tune": ("--steps", "4", "--computed", "2", "--rounds", "0", "-o", "FILE"),
    "precompile": ("-o", "FILE", *HANGING),
}


def written(folder: Path, at: int, command: str) -> list[str]:
    """The arguments of a command on a model that hangs in one generation, or in its compiler."""
    (folder / "source.py").write_text(SOURCE.format(at=at))
    more = [str(folder / "file") if one == "FILE" else one for one in COMMANDS[command]]
    return [command, str(folder / "source.py"), *more]


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ("report", 80),
        pytest.param("compare", None, marks=pytest.mark.long),
        pytest.param("tune", None, marks=pytest.mark.long),
        ("precompile", None),
    ],
)
def test_ctrl_c_ends_a_command_and_leaves_what_was_there(
    command: str, columns: int | None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    running = Running(written(tmp_path, 2, command), tmp_path, columns)
    running.interrupt_after(tmp_path / "hangs")
    code, out, err = running.end()
    assert code == exits.INTERRUPTED
    assert f"pab {command}: interrupted" in out + err
    assert "Traceback" not in out + err
    assert (tmp_path / "file").read_text() == "old"
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__", "stdout", "stderr"}
    assert left == {"file", "hangs", "source.py"}


@pytest.mark.parametrize("columns", [pytest.param(80, marks=pytest.mark.long), 40])
def test_bars_are_drawn_and_texts_fit_a_terminal(columns: int, tmp_path: Path) -> None:
    code, shown, _ = Running(written(tmp_path, -1, "report"), tmp_path, columns).end()
    lines = [line for line in lines_of(shown) if str(tmp_path) not in line]  # a long path
    assert code == exits.OK, shown
    bars = [line for line in lines if "━" in line]
    assert any("/" in bar for bar in bars), shown
    assert [line for line in lines if len(line) > columns] == []
    assert "steps that compute" in " ".join(lines)
    assert not any(line.startswith("pab_compile") for line in lines)  # the log


def test_a_command_without_a_terminal_logs_and_draws_no_bars(tmp_path: Path) -> None:
    code, out, err = Running(written(tmp_path, -1, "report"), tmp_path).end()
    assert code == exits.OK, err
    assert "pab_compile.cli: the second generation" in err
    assert "━" not in out + err
    assert "\x1b" not in out + err
    page = (tmp_path / "file").read_text()
    assert json.loads(page.partition('id="data">')[2].partition("</script>")[0])["steps"] == 4
