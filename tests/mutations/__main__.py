"""Breaks the library in one place at a time and runs tests until one fails.

python -m tests.mutations                 # every mutation, with the tests that its entry names
python -m tests.mutations -k regions      # those whose place contains a word
python -m tests.mutations --costs         # optimisations that are taken out
python -m tests.mutations --all-tests     # the whole suite where the named tests find nothing

The working tree stays as it is: the library is copied to a temporary folder, which is imported
instead. The exit status is the number of mutations that no test found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track

from .catalogue import MUTATIONS
from .costs import SLOWER
from .mutation import Mutation

ROOT = Path(__file__).parents[2]
FOUND, NOT_FOUND = 1, 0  # pytest's exit status: a test failed, all passed


def main() -> int:
    """Run the mutations and print a line for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("-k", metavar="WORD", default="", help="only places that contain this")
    parser.add_argument("--all-tests", action="store_true", help="then the whole suite")
    parser.add_argument("--costs", action="store_true", help="only optimisations, taken out")
    options = parser.parse_args()
    every = SLOWER if options.costs else MUTATIONS
    chosen = [mutation for mutation in every if options.k in mutation.path]
    for mutation in chosen:
        mutation.applied((ROOT / mutation.path).read_text(encoding="utf-8"))  # raises if stale
    console = Console()
    survivors = 0
    for mutation in track(chosen, description="mutations", console=console):
        start = time.perf_counter()
        status = run_tests(mutation, mutation.tests)
        if status == NOT_FOUND and options.all_tests:
            status = run_tests(mutation, ("tests",))
        word = {FOUND: "found", NOT_FOUND: "NOT FOUND"}.get(status, f"pytest status {status}")
        survivors += status != FOUND
        seconds = time.perf_counter() - start
        console.print(f"{word}: {mutation.path}: {mutation.what} ({seconds:.0f} s)", markup=False)
    console.print(f"{len(chosen) - survivors} of {len(chosen)} found")
    return survivors


def run_tests(mutation: Mutation, tests: tuple[str, ...]) -> int:
    """Pytest's exit status with a mutated library; stops at the first failure."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "pab_compile"
        shutil.copytree(ROOT / "pab_compile", library)
        shutil.copytree(ROOT / "passes", library / "passes")
        inside = mutation.path.removeprefix("pab_compile/")
        path = library / inside
        path.write_text(mutation.applied(path.read_text(encoding="utf-8")), encoding="utf-8")
        # The mutated library comes before this tree, which pytest's own option would put first.
        paths = f"pythonpath={folder} tests examples ."
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:logging", "-o", paths]
        command += tests
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
