"""The screenshots of ``docs/report.md``: ``python docs/screenshots.py``. It needs Chromium.

It runs the demo's model (``examples/digits_command_line.py``) with eager pieces: about a minute.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers import browser  # noqa: E402

RANGES = '{"inner": "eager", "ranges": {"spatial": 2, "temporal": 3, "cross": 6}}'
EAGER = '{"inner": "eager"}'
PAGES = {
    "report": ["--steps", "24", "--baseline", "--curves", "--options", RANGES],
    "compare": ["--steps", "24", "--options", EAGER],
}
PICTURES = {
    "report_wide": ("report", 1100, 1900),
    "report_narrow": ("report", 390, 1500),
    "compare_wide": ("compare", 1100, 900),
}


def main() -> None:
    """Write the pages, and take their pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in PAGES.items():
            command = [sys.executable, "-m", "pab_compile.cli", name, "-q"]
            command += [str(ROOT / "examples" / "digits_command_line.py"), *arguments]
            command += ["-o", str(Path(folder) / f"{name}.html")]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name, (page, width, height) in PICTURES.items():
            picture = ROOT / "docs" / f"{name}.png"
            size = f"--window-size={width},{height}"
            path = Path(folder) / f"{page}.html"
            done = browser.run(path, Path(folder), size, f"--screenshot={picture}")
            print(f"{picture.relative_to(ROOT)}: {done.returncode}")


if __name__ == "__main__":
    main()
