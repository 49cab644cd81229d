"""The screenshots of ``docs/report.md``: ``python docs/screenshots.py``. It needs Chromium.

It runs the demo's model of ``examples/command_line.py`` with eager pieces, so it takes seconds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import browser  # noqa: E402

SIZES = {"wide": (1100, 1180), "narrow": (400, 1180)}


def main() -> None:
    """Write a page, and take its pictures."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        command = [sys.executable, "-m", "pab_compile.cli", "report", "-q"]
        command += [str(ROOT / "examples" / "command_line.py"), "--steps", "24", "-o", str(page)]
        options = '{"inner": "eager", "ranges": {"spatial": 2, "temporal": 3, "cross": 6}}'
        subprocess.run([*command, "--options", options], check=True, stdout=subprocess.DEVNULL)
        for name, (width, height) in SIZES.items():
            picture = ROOT / "docs" / f"report_{name}.png"
            size = f"--window-size={width},{height}"
            done = browser.run(page, Path(folder), size, f"--screenshot={picture}")
            print(f"{picture.relative_to(ROOT)}: {done.returncode}")


if __name__ == "__main__":
    main()
