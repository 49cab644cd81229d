"""Commands of ``pab`` in processes of their own, on a terminal or on pipes.

The processes are forked from one that has imported torch, so that each of them starts quickly. On a
terminal, Ctrl-C is typed; without one, the signal is sent.
"""

from __future__ import annotations

import fcntl
import multiprocessing as mp
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SECONDS = 240
_CONTEXT = mp.get_context("forkserver")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Running:
    """A command that runs.

    Args:
        arguments: of ``pab``.
        folder: for its output.
        columns: of the terminal that it runs on; None for files instead.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, columns: int | None = None) -> None:
        _CONTEXT.set_forkserver_preload(["torch._dynamo", "pab_compile.cli.compare"])
        self._files = folder / "stdout", folder / "stderr"
        self._master: int | None = None
        self._shown = b""
        name = ""
        if columns is not None:
            self._master, slave = pty.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            name = os.ttyname(slave)
        files = [str(file) for file in self._files]
        self._process: Any = _CONTEXT.Process(target=_run, args=(list(arguments), files, name))
        self._process.start()
        if columns is not None:
            self._read_until(lambda: b"\0" in self._shown)  # it has opened the terminal
            os.close(slave)

    def interrupt_after(self, file: Path) -> None:
        """Ctrl-C, as soon as a file is there."""
        self._read_until(file.exists)
        if self._master is None:
            os.kill(self._process.pid, signal.SIGINT)
        else:
            os.write(self._master, b"\x03")

    def end(self) -> tuple[int, str, str]:
        """Wait for the end: the exit code, standard output and standard error.

        A terminal shows both, in the first text.
        """
        self._read_until(lambda: not self._process.is_alive())
        self._process.join()
        if self._master is None:
            out, err = (file.read_text() for file in self._files)
            return self._process.exitcode, out, err
        self._read(0.1)
        os.close(self._master)
        return self._process.exitcode, self._shown.replace(b"\0", b"").decode(), ""

    def _read_until(self, is_so: Any) -> None:
        end = time.monotonic() + _SECONDS
        while not is_so():
            assert time.monotonic() < end, f"nothing came of it: {self._shown!r}"
            assert self._process.is_alive() or self._process.exitcode is not None
            self._read(0.02)

    def _read(self, seconds: float) -> None:
        if self._master is None:
            time.sleep(seconds)
            return
        while select.select([self._master], [], [], seconds)[0]:
            try:
                found = os.read(self._master, 65536)
            except OSError:  # nobody has the other end open
                return
            self._shown += found
            seconds = 0


def lines_of(shown: str) -> list[str]:
    """The lines that a terminal showed, each time it was drawn, without colours."""
    return re.split(r"[\r\n]+", _ESCAPES.sub("", shown))


def _run(arguments: list[str], files: list[str], terminal: str) -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.environ.pop("COLUMNS", None)
    os.environ["TERM"] = "xterm"
    if terminal:
        device = os.open(terminal, os.O_RDWR)
        fcntl.ioctl(device, termios.TIOCSCTTY, 0)
        os.write(device, b"\0")
        ends = [device] * 3
    else:
        ends = [os.open("/dev/null", os.O_RDONLY)]
        ends += [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for file in files]
    for number, end in enumerate(ends):
        os.dup2(end, number)
    for number, mode in enumerate("rww"):
        name = ("stdin", "stdout", "stderr")[number]
        setattr(sys, name, os.fdopen(number, mode, closefd=False))
    from pab_compile.cli.main import main

    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)
