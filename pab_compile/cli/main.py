"""``pab``: the parser, and what becomes of errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from . import exits
from .output import to_terminal

COMMANDS = {
    "doctor": "what is installed, what torch.compile can do here, and a self-test",
    "explain": "what is found in a model, and what a plan does with it",
    "report": "run a generation and write a page about it",
    "tune": "find a plan for a pipeline, its sampler and its number of steps",
    "compare": "seconds and quality of several plans, from real generations",
    "precompile": "compile before the first request",
}
_EPILOG = (
    "exit codes: 0 done; 1 the library refused, and says why; 2 wrong use, or a missing file; "
    "3 a check of doctor failed; 130 interrupted, with no half-written file left"
)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    made = argparse.ArgumentParser(
        prog="pab", description="Pyramid Attention Broadcast for diffusion transformers."
    )
    made.epilog = _EPILOG
    made.add_argument("--version", action="version", version=f"pab_compile {_version()}")
    commands = made.add_subparsers(dest="command", metavar="COMMAND")
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about, epilog=_EPILOG)
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument("-q", "--quiet", action="store_true", help="no log lines")
        _module(name).add_arguments(command)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: those of the command line. None: those of the process.

    Returns:
        The exit code (``exits``).
    """
    command = "pab"
    try:
        asked = parser()  # imports torch, which takes a while
        given = asked.parse_args(arguments)
        if given.command is None:
            asked.print_help(sys.stderr)
            return exits.USAGE
        command = f"pab {given.command}"
        return _run(given, command)
    except KeyboardInterrupt:
        print(f"{command}: interrupted", file=sys.stderr)
        return exits.INTERRUPTED


def _run(given: argparse.Namespace, command: str) -> int:
    """Run a command. What it refuses is said in a line."""
    from pab_compile.errors import PabError

    to_terminal(given.quiet)
    try:
        return _module(given.command).run(given)
    except exits.UsageError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return exits.USAGE
    except PabError as error:
        print(f"{command}: {type(error).__name__}: {error}", file=sys.stderr)
        return exits.REFUSED


def _version() -> str:
    try:
        return version("pab_compile")
    except PackageNotFoundError:
        return "of unknown version"


def _module(command: str) -> ModuleType:
    return import_module(f".{command}", __package__)
