"""Which per-prompt inputs may turn out to change at every step (``pab_compile.runtime.stepping``).

Residuals of a control model, a strength that fades and other latents may. The prompt may not: what
attention reads as tokens of their own, what is named after text, masks, and numbers that are no
floats. A call with another prompt belongs to another lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import fx

from pab_compile.passes.axes.input_roles import is_named_text
from pab_compile.passes.axes.table import AxisTable
from pab_compile.passes.graph import ir

from .mixer import Mixer

_PROMPT_NAMES = ("mask", "pooled", "uncond", "negative")


def may_step(
    inputs: Sequence[fx.Node],
    axes: AxisTable | None,
    mixers: Iterable[Mixer],
    stated: Mapping[str, str],
) -> tuple[str, ...]:
    """Names of the inputs that may change at every step.

    Args:
        inputs: the per-prompt inputs of a graph.
        axes: the axes of the graph, if they are known.
        mixers: its attentions.
        stated: what the user states, by the full name of the input. It holds.
    """
    read = {name for mixer in mixers for name in (*mixer.query_axes, *mixer.key_axes)}
    found = []
    for node in inputs:
        name, tensor = ir.source(node), ir.tensor(node)
        if tensor is None or not tensor.is_floating_point() or ir.is_eager(node):
            continue
        is_prompt = is_named_text(node) or any(word in name.lower() for word in _PROMPT_NAMES)
        token_axis = axes.sources.get(name) if axes is not None else None
        if not is_prompt and token_axis not in read and name not in stated:
            found.append(name)
    return tuple(found)
