"""Sources: what a command works on, and how one generation of it runs.

A source is a folder of a pipeline of diffusers, or a Python file that makes the model::

    def load():                             # required: a pipeline, or a module
        return MyModel().eval().requires_grad_(False)

    def call(target, prompt, num_steps):    # required, unless load returns a pipeline of diffusers
        ...                                 # one generation; returns the result as a tensor
        return latents

    prompts = ["a cat", "a dog"]            # optional
    def inputs(target): return {...}        # optional: the keyword arguments of one model call
    def frames(target, result): ...         # optional: what pages show: [frames, height, width] or
                                            # [frames, height, width, 3], or the path of a video
    measures = {"name": function}           # optional: quality of two such, for pab compare

``--call call.py`` names a file with ``call``, and the other names if it likes. ``--call call.yaml``
states the call instead (``call_file``).
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pab_compile.denoisers import denoisers_of
from pab_compile.tuning.comparing import calling

from .call_file import ENDS, CallFile, read_call_file
from .exits import UsageError

_USUAL_PROMPTS = ("a cat on a lawn",)
_USUAL_STEPS = 30


@dataclass(frozen=True)
class Source:
    """What a command works on.

    Attributes:
        name: for titles.
        target: a pipeline or a module.
        call: runs one generation: ``call(target, prompt, num_steps)``.
        prompts: what it can be called with.
        inputs: gives the keyword arguments of one call of the model; None if the file has none.
        frames: ``frames(target, result)``: what pages show of a result; None if there is none.
        steps: of a generation, if a call file says so.
        measures: what ``compare`` measures besides (``tuning.measures``).
    """

    name: str
    target: Any
    call: Callable[[Any, Any, int], Any]
    prompts: Sequence[Any]
    inputs: Callable[[Any], dict[str, Any]] | None = None
    frames: Callable[[Any, Any], Any] | None = None
    steps: int | None = None
    measures: Mapping[str, Any] | None = None

    def steps_of(self, given: argparse.Namespace) -> int:
        """Steps of a generation: of the command line, of the call file, or as usual."""
        return given.steps or self.steps or _USUAL_STEPS

    def generate(self, prompt: Any, num_steps: int) -> Any:
        """Run one generation without gradients."""
        with torch.no_grad():
            return self.call(self.target, prompt, num_steps)

    def frames_of(self, result: Any) -> Any:
        """What pages show of a result: frames, or the path of a video; None if that is unknown."""
        if self.frames is None:
            return None
        with torch.no_grad():
            return self.frames(self.target, result)

    def part(self) -> Any:
        """The one module that denoises."""
        if isinstance(self.target, torch.nn.Module):
            return self.target
        found = denoisers_of(self.target)
        if len(found) != 1:
            roles = ", ".join(found) or "none"
            raise UsageError(
                f"{self.name} has {len(found)} modules that denoise ({roles}), and this command "
                "needs one. Let load() return that module, and call() use it."
            )
        return next(iter(found.values()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a source."""
    group = parser.add_argument_group("what to work on")
    group.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a Python file with load(), and with call() unless --call is given",
    )
    group.add_argument("--pipeline", metavar="PATH", help="the folder of a pipeline of diffusers")
    group.add_argument(
        "--call", type=Path, metavar="FILE", help="a Python file with call(), or a YAML file"
    )
    group.add_argument("--device", help="where the pipeline runs (default: cuda if there is one)")
    group.add_argument("--dtype", default=None, help="of the pipeline, such as bfloat16")
    group.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="a text file, one per line")


def add_steps(parser: argparse.ArgumentParser) -> None:
    """The argument for the number of steps."""
    said = f"of a generation (default: what the call file says, or {_USUAL_STEPS})"
    parser.add_argument("--steps", type=at_least_one, help=said)


def at_least_one(text: str) -> int:
    """A number of steps, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too few: give 1 or more")
    return number


def source_of(given: argparse.Namespace) -> Source:
    """The source that the arguments name.

    Raises:
        UsageError: it is not there, or lacks something.
    """
    if (given.file is None) == (given.pipeline is None):
        raise UsageError("Give a Python file, or --pipeline PATH: one of them.")
    asked = _asked(given)
    stated = None if given.call is None or given.call.suffix not in ENDS else given.call
    file = None if stated is None else read_call_file(stated)
    code = _module(given.call) if given.call is not None and file is None else None
    if given.file is not None:
        made = _module(given.file)
        if not callable(getattr(made, "load", None)):
            raise UsageError(f"{given.file} has no function load(), which returns the model.")
        _refuse_unused(given)
        code = code or made
        target, name, where = made.load(), given.file.name, given.call or given.file
    else:
        target, name, where = _pipeline(given, file), Path(given.pipeline).name, given.call
    if file is not None:
        return _stated(name, target, file, asked)
    call = getattr(code, "call", None)
    if call is None and given.call is not None:
        raise UsageError(f"{where} has no function call(target, prompt, num_steps).")
    if call is None and isinstance(target, torch.nn.Module):
        raise UsageError(
            f"{where} has no function call(target, prompt, num_steps). Write one, or state the "
            "call in a YAML file: --call call.yaml."
        )
    prompts = asked or list(getattr(code, "prompts", _USUAL_PROMPTS))
    inputs, frames = getattr(code, "inputs", None), getattr(code, "frames", None)
    measures = getattr(code, "measures", None)
    call = call or _usual_call(target)
    return Source(name, target, call, prompts, inputs, frames, measures=measures)


def _stated(name: str, target: Any, file: CallFile, asked: list[Any]) -> Source:
    """A source whose calls a file states."""
    prompts = asked or file.prompts or list(_USUAL_PROMPTS)
    inputs = file.inputs_of if isinstance(target, torch.nn.Module) else None
    return Source(name, target, file.call_of(target, prompts), prompts, inputs, None, file.steps)


def _refuse_unused(given: argparse.Namespace) -> None:
    """Refuse what a Python file decides itself."""
    for name in ("device", "dtype"):
        if getattr(given, name) is not None:
            raise UsageError(
                f"--{name} is for --pipeline. {given.file.name} makes the model: state it there."
            )


def _asked(given: argparse.Namespace) -> list[Any]:
    """The prompts of the command line."""
    if given.prompts is None:
        return list(given.prompt or [])
    if not given.prompts.is_file():
        raise UsageError(f"--prompts {given.prompts}: there is no such file.")
    lines = given.prompts.read_text(encoding="utf-8").splitlines()
    return [*(given.prompt or []), *(line.strip() for line in lines if line.strip())]


def _module(path: Path) -> ModuleType:
    """Run a Python file. It may import its neighbours."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    spec = importlib.util.spec_from_file_location(f"pab_source_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name must end in .py.")
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # classes of the file are found by their module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(code)
    return code


def _pipeline(given: argparse.Namespace, file: CallFile | None) -> Any:
    folder = Path(given.pipeline)
    if not (folder / "model_index.json").is_file():
        what = (
            "the folder has no model_index.json" if folder.is_dir() else "there is no such folder"
        )
        raise UsageError(
            f"--pipeline {folder}: {what}. Give the folder that a pipeline of diffusers was saved "
            "or downloaded to."
        )
    try:
        from diffusers import DiffusionPipeline
    except ImportError as error:
        raise UsageError(f"--pipeline needs diffusers: pip install diffusers ({error}).") from error
    dtype = getattr(torch, given.dtype or (file and file.dtype) or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise UsageError(f"--dtype {given.dtype}: torch has no such dtype.")
    pipe = DiffusionPipeline.from_pretrained(str(folder), **_as_dtype(DiffusionPipeline, dtype))
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe = pipe.to(device)
    pipe.set_progress_bar_config(disable=not sys.stderr.isatty())
    return pipe


def _as_dtype(pipeline: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The argument for the dtype. ``dtype`` replaced ``torch_dtype`` in diffusers."""
    accepted = inspect.getdoc(pipeline.from_pretrained) or ""
    is_new = re.search(r"^\s*dtype \(", accepted, re.M) is not None
    return {"dtype" if is_new else "torch_dtype": dtype}


def _usual_call(pipe: Any) -> Callable[[Any, Any, int], Any]:
    """One generation of a pipeline of diffusers. A prompt has the same noise at every run."""
    generate = calling(pipe)
    return lambda _, prompt, num_steps: generate(prompt, num_steps)
