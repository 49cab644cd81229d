"""Call files: YAML that says how to call a pipeline or a model, instead of a Python function.

For a pipeline::

    arguments:                  # of the pipeline, besides the prompt, the steps and the generator
      height: 64
      prompt_embeds: {size: [1, 7, 10]}     # a tensor of random numbers
      mask: {size: [1, 7], dtype: bool, fill: 1}
    prompt: prompt              # the argument that takes the prompt; null for none
    prompts: [a cat, a dog]     # or their number, where they differ in their noise alone
    seed: 0                     # of the noise of the first prompt; the next one has the next seed
    dtype: bfloat16             # of the tensors, and of the pipeline
    steps: 30                   # of a generation

For a model also the loop over steps: the latents take the model's output, divided by their number::

    latents: {argument: x, size: [1, 3, 8, 8]}
    timestep: {argument: t, first: 1000, last: 0}
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pab_compile.errors import OptionError
from pab_compile.option_text import from_yaml
from pab_compile.plans.hints import YAML_ENDS, near_miss
from pab_compile.runtime.scope import generation

from .exits import UsageError

ENDS = (*YAML_ENDS, ".json")
"""How the name of a call file ends."""
_KEYS = ("arguments", "prompt", "prompts", "seed", "dtype", "steps")
_MODEL_KEYS = ("latents", "timestep")
_TENSOR_KEYS = ("size", "dtype", "fill")
_LATENTS_KEYS = ("argument", "size", "dtype")
_TIMESTEP_KEYS = ("argument", "size", "dtype", "first", "last")


@dataclass(frozen=True)
class CallFile:
    """What a call file states.

    Attributes:
        where: the file, for messages.
        stated: its keys, which are checked.
    """

    where: str
    stated: Mapping[str, Any]

    @property
    def prompts(self) -> list[Any] | None:
        """The prompts; None if the file has none."""
        found = self.stated.get("prompts")
        return list(range(found)) if isinstance(found, int) else found

    @property
    def dtype(self) -> str | None:
        """Name of the dtype; None if the file has none."""
        return self.stated.get("dtype")

    @property
    def steps(self) -> int | None:
        """Steps of a generation; None if the file does not say."""
        return self.stated.get("steps")

    def call_of(self, target: Any, prompts: list[Any]) -> Callable[[Any, Any, int], Any]:
        """One generation: ``call(target, prompt, num_steps)``.

        Args:
            target: a pipeline or a module.
            prompts: all of them. The place of a prompt decides its noise.

        Raises:
            UsageError: the target does not take what the file states.
        """
        if isinstance(target, torch.nn.Module):
            self._check_arguments(target.forward, self._model_arguments())
            return lambda model, prompt, steps: self._denoise(model, prompts.index(prompt), steps)
        for key in _MODEL_KEYS:
            if key in self.stated:
                raise self._wrong(
                    f"{key} is for a model, and {type(target).__name__} is a pipeline, which makes "
                    f"its own {key}. Leave it out."
                )
        self._check_arguments(target.__call__, self._pipeline_arguments(target))
        return lambda pipe, prompt, steps: self._generate(pipe, prompt, prompts, steps)

    def inputs_of(self, model: torch.nn.Module) -> dict[str, Any]:
        """The keyword arguments of the first call of a model."""
        noise, device = self._noise(0), _device_of(model)
        return {
            **self._filled(noise, device),
            self._part("latents")["argument"]: self._latents(noise, device),
            self._part("timestep")["argument"]: self._timestep(0, 1, device),
        }

    def _generate(self, pipe: Any, prompt: Any, prompts: list[Any], steps: int) -> Any:
        """One generation of a pipeline."""
        noise, name = self._noise(prompts.index(prompt)), self._prompt_argument(pipe)
        known = inspect.signature(pipe.__call__).parameters
        wanted = {"num_inference_steps": steps, "generator": noise, "output_type": "latent"}
        given: dict[str, Any] = {key: value for key, value in wanted.items() if key in known}
        given |= {} if name is None else {name: prompt}
        result = pipe(**{**given, **self._filled(noise, _device_of(pipe))})
        return result[0] if isinstance(result, tuple) else next(iter(result.values()))

    def _denoise(self, model: torch.nn.Module, place: int, steps: int) -> torch.Tensor:
        """One generation of a model."""
        noise, device = self._noise(place), _device_of(model)
        given, latents = self._filled(noise, device), self._latents(noise, device)
        latents_name, clock = (self._part(key)["argument"] for key in _MODEL_KEYS)
        # The library does not look for the schedule in its own functions.
        with generation(timesteps=[self._number(step, steps) for step in range(steps)]):
            for step in range(steps):
                timestep = self._timestep(step, steps, device)
                output = model(**given, **{latents_name: latents, clock: timestep})
                output = output if isinstance(output, torch.Tensor) else output[0]
                if output.shape != latents.shape:
                    raise self._wrong(
                        f"the model returns {list(output.shape)}, and its latents are "
                        f"{list(latents.shape)}. Write call() in a Python file instead."
                    )
                latents = latents - output / steps
        return latents

    def _noise(self, place: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.stated.get("seed", 0) + place)

    def _filled(self, noise: torch.Generator, device: torch.device) -> dict[str, Any]:
        """The arguments, with tensors for their sizes."""
        return {
            name: self._tensor(value, noise, device) if _is_tensor(value) else value
            for name, value in self.stated.get("arguments", {}).items()
        }

    def _tensor(
        self, stated: Mapping[str, Any], noise: torch.Generator, device: torch.device
    ) -> torch.Tensor:
        dtype = _dtype(stated.get("dtype", self.dtype or "float32"))
        if "fill" in stated:
            return torch.full(stated["size"], stated["fill"], dtype=dtype, device=device)
        return torch.randn(stated["size"], generator=noise).to(device, dtype)

    def _latents(self, noise: torch.Generator, device: torch.device) -> torch.Tensor:
        return self._tensor(self._part("latents"), noise, device)

    def _timestep(self, step: int, steps: int, device: torch.device) -> torch.Tensor:
        """The timestep of a step, as the model takes it."""
        stated = self._part("timestep")
        size = stated.get("size", self._part("latents")["size"][:1])
        dtype = _dtype(stated.get("dtype", "float32"))
        return torch.full(size, self._number(step, steps), device=device).to(dtype)

    def _number(self, step: int, steps: int) -> float:
        """The timestep of a step, evenly spaced. The last step is before the last timestep."""
        stated = self._part("timestep")
        first, last = stated.get("first", 1000), stated.get("last", 0)
        found = first + (last - first) * step / steps
        whole = not _dtype(stated.get("dtype", "float32")).is_floating_point
        return float(int(found) if whole else found)

    def _part(self, key: str) -> Mapping[str, Any]:
        return self.stated[key]

    def _model_arguments(self) -> list[str]:
        missing = [key for key in _MODEL_KEYS if key not in self.stated]
        if missing:
            raise self._wrong(
                f"{missing[0]} is missing: a model needs latents: {{argument: x, size: [1, 3, 8, "
                "8]}} and timestep: {argument: t}."
            )
        if self.stated.get("prompt") is not None:
            raise self._wrong("prompt is for a pipeline. State a model's prompt in arguments.")
        found = [self._part(key)["argument"] for key in _MODEL_KEYS]
        for name in found:
            self._refuse_twice(name)
        return [*self.stated.get("arguments", {}), *found]

    def _pipeline_arguments(self, pipe: Any) -> list[str]:
        name = self._prompt_argument(pipe)
        for one in ("num_inference_steps", "generator", *([] if name is None else [name])):
            self._refuse_twice(one)
        return [*self.stated.get("arguments", {}), *([] if name is None else [name])]

    def _prompt_argument(self, pipe: Any) -> str | None:
        """The argument that takes the prompt; None if prompts differ in their noise alone."""
        if "prompt" in self.stated:
            return self.stated["prompt"]
        if isinstance(self.stated.get("prompts"), int):
            return None
        is_stated = {"prompt", "prompt_embeds"} & set(self.stated.get("arguments", {}))
        known = inspect.signature(pipe.__call__).parameters
        return None if is_stated or "prompt" not in known else "prompt"

    def _refuse_twice(self, name: str) -> None:
        if name in self.stated.get("arguments", {}):
            what = {"num_inference_steps": "steps", "generator": "seed"}.get(name, "another key")
            raise self._wrong(f"arguments has {name!r}, which {what} states. Leave one out.")

    def _check_arguments(self, function: Callable[..., Any], names: Collection[str]) -> None:
        """Refuse arguments that a function does not have."""
        known = inspect.signature(function).parameters
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values()):
            return
        for name in names:
            if name not in known:
                raise self._wrong(f"there is no argument {name!r}.{near_miss(name, known)}")

    def _wrong(self, text: str) -> UsageError:
        return UsageError(f"{self.where}: {text}")


def read_call_file(path: Path) -> CallFile:
    """Read a call file.

    Raises:
        UsageError: it is not there, or a key of it is wrong. The message names the key.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file.")
    text = path.read_text(encoding="utf-8")
    try:
        stated = json.loads(text) if path.suffix == ".json" else from_yaml(text)
    except (ValueError, RecursionError, OptionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    try:
        return CallFile(str(path), _checked(stated))
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


def _checked(stated: Any) -> Mapping[str, Any]:
    _check_keys("the file", stated, (*_KEYS, *_MODEL_KEYS))
    for name, value in _mapping("arguments", stated.get("arguments", {})).items():
        if isinstance(value, dict) and "size" in value:
            _check_tensor(f"arguments: {name}", value, _TENSOR_KEYS)
        elif isinstance(value, dict) and set(value) & set(_TENSOR_KEYS):
            raise ValueError(f"arguments: {name}: size is missing, such as size: [1, 7, 10].")
    for key, keys in (("latents", _LATENTS_KEYS), ("timestep", _TIMESTEP_KEYS)):
        if key in stated:
            part = _mapping(key, stated[key])
            _check_tensor(key, part, keys, must_have=("argument",))
            if key == "latents" and not part.get("size"):
                raise ValueError("latents: size is missing, such as size: [1, 3, 8, 8].")
    prompt, prompts = stated.get("prompt"), stated.get("prompts", [""])
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt is the name of an argument, or null; got {prompt!r}.")
    is_number = _is_whole(prompts, 1)
    if not is_number and not (isinstance(prompts, list) and prompts):
        raise ValueError(f"prompts is a list, or a number of them from 1; got {prompts!r}.")
    if is_number and prompt is not None:
        raise ValueError(f"prompts is a number, so there are none for prompt: {prompt}. List them.")
    for key, least in (("seed", 0), ("steps", 1)):
        if key in stated and not _is_whole(stated[key], least):
            raise ValueError(f"{key} is a whole number from {least}; got {stated[key]!r}.")
    if "dtype" in stated:
        _dtype(stated["dtype"])
    return stated


def _check_tensor(
    where: str, stated: Mapping[str, Any], keys: Collection[str], must_have: Collection[str] = ()
) -> None:
    _check_keys(where, stated, keys)
    for key in must_have:
        if not isinstance(stated.get(key), str):
            raise ValueError(f"{where}: {key} is the name of an argument; got {stated.get(key)!r}.")
    size = stated.get("size", [])
    if not isinstance(size, list) or not all(_is_whole(number, 0) for number in size):
        raise ValueError(f"{where}: size is a list of whole numbers; got {size!r}.")
    for key in ("fill", "first", "last"):
        if key in stated and not isinstance(stated[key], (int, float)):
            raise ValueError(f"{where}: {key} is a number; got {stated[key]!r}.")
    dtype = _dtype(stated.get("dtype", "float32"), where)
    is_random = "fill" in keys and "fill" not in stated
    if is_random and not dtype.is_floating_point:
        raise ValueError(f"{where}: {stated['dtype']} has no random numbers. Give fill: a number.")


def _check_keys(where: str, stated: Any, known: Collection[str]) -> None:
    for key in _mapping(where, stated):
        if key not in known:
            raise ValueError(f"{where} has no key {key!r}.{near_miss(str(key), known)}")


def _mapping(where: str, stated: Any) -> Mapping[str, Any]:
    if not isinstance(stated, dict):
        raise ValueError(f"{where} holds names with values, such as height: 64; got {stated!r}.")
    return stated


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and "size" in value


def _dtype(name: Any, where: str = "") -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else None
    if not isinstance(found, torch.dtype):
        said = f"{where}: " if where else ""
        raise ValueError(f"{said}torch has no dtype {name!r}. Names are such as bfloat16.")
    return found


def _device_of(target: Any) -> torch.device:
    """Where a pipeline or a module runs."""
    if isinstance(target, torch.nn.Module):
        return next((tensor.device for tensor in target.parameters()), torch.device("cpu"))
    return torch.device(getattr(target, "_execution_device", None) or target.device)
