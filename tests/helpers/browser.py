"""A headless Chromium, where one is installed. Debian has it as the package ``chromium``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
ALWAYS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)


def chromium() -> str:
    """The program; the test is skipped where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return found


def run(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page with a profile of its own."""
    program = chromium()
    command = [program, *ALWAYS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def document(page: Path, folder: Path, *options: str) -> tuple[str, list[str]]:
    """The document of a page after its code ran, and what the console says."""
    done = run(page, folder, "--virtual-time-budget=2000", "--dump-dom", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout, console(done.stderr.splitlines())


def console(lines: Sequence[str]) -> list[str]:
    """What pages wrote to the console, among the lines that the program logs."""
    return [line for line in lines if re.search(r"CONSOLE[:(]", line)]
