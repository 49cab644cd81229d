"""The nodes: "PAB model" compiles a model with a plan, "PAB report" says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pab_compile
from pab_compile.plans.levels import DEFAULT, LEVELS

from .patch import MODULE, patched

_CATEGORY = "model/pab"


class PABModel:
    """Compiles a model so that its steps reuse the outputs of earlier steps."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"
    CATEGORY = _CATEGORY
    DESCRIPTION = "Reuses outputs of earlier steps. The first run of a size compiles the model."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node shows."""
        plan = {"default": "", "tooltip": "Path of a plan file. It replaces the level."}
        budget = {"default": "", "tooltip": "Memory for caches, such as 8GiB. Empty: any amount."}
        whole = {
            "default": False,
            "tooltip": "Reuse outputs of whole steps: for models whose parts are not recognised.",
        }
        return {
            "required": {
                "model": ("MODEL",),
                "level": ([*LEVELS, "off"], {"default": DEFAULT}),
            },
            "optional": {
                "plan_file": ("STRING", plan),
                "memory_budget": ("STRING", budget),
                "whole_output": ("BOOLEAN", whole),
            },
        }

    def apply(
        self,
        model: Any,
        level: str,
        plan_file: str = "",
        memory_budget: str = "",
        whole_output: bool = False,
    ) -> tuple[Any]:
        """The patched model."""
        return (patched(model, options_of(level, plan_file, memory_budget, whole_output)),)


class PABReport:
    """Writes the page about the last generation of a model."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("text",)
    FUNCTION = "report"
    CATEGORY = _CATEGORY
    OUTPUT_NODE = True
    DESCRIPTION = "Connect it behind the sampler: it needs a generation that ran."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """What the node shows."""
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model behind PAB model."}),
                "latent": ("LATENT", {"tooltip": "The sampler's result: it makes the node wait."}),
                "name": ("STRING", {"default": "pab_report"}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> float:
        """Another generation may have run: never take the last text."""
        return float("nan")

    def report(self, model: Any, latent: Any, name: str) -> dict[str, Any]:
        """Write the page to ComfyUI's output folder, and return the text."""
        import folder_paths

        stats = pab_compile.stats(model.get_model_object(MODULE))
        path = Path(folder_paths.get_output_directory()) / f"{Path(name).name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)  # a new ComfyUI has no such folder
        stats.to_html(path, title=name)
        text = f"{stats}\nwrote {path}"
        return {"ui": {"text": [text]}, "result": (text,)}


def options_of(
    level: str, plan_file: str = "", memory_budget: str = "", whole_output: bool = False
) -> dict[str, Any]:
    """Options of the backend.

    Args:
        level: a level, or ``off``.
        plan_file: the path of a plan file, or ``""``. It replaces the level.
        memory_budget: memory for caches, or ``""``.
        whole_output: whether whole steps are reused instead of parts of the model.
    """
    options: dict[str, Any] = {"ranges": LEVELS.get(level, {})}
    if plan_file.strip():
        options = {"plan": plan_file.strip()}
    if memory_budget.strip():
        options["cache_budget"] = memory_budget.strip()
    if whole_output:
        options["cut"] = "output"
    return options
