"""Memory: what ``tune`` holds at most, said before the fit begins."""

from __future__ import annotations

from collections.abc import Sequence

from pab_compile.report.draw import format_bytes

from .fit import Target
from .full_runs import FullRuns

_NUMBERS = 3
"""Most numbers per computed step. A step with one prompt has a guidance difference or two more."""


def memory_line(seen: FullRuns, targets: Sequence[Target], count: int, rounds: int) -> str:
    """What the fit will hold, in words.

    Args:
        seen: the full runs.
        targets: of the prompts of the fit.
        count: number of computed steps.
        rounds: of the last fit.
    """
    held = {id(x): _bytes(x) for each in targets for x in (*each.latents, each.result)}
    latents, outputs = sum(held.values()), 2 * len(targets) * count * seen.output_bytes
    results = sum(_bytes(each.result) for each in targets)
    derivatives = _NUMBERS * count * results if rounds else 0
    total = latents + outputs + derivatives
    return (
        f"tune holds about {format_bytes(total)} besides the model: {format_bytes(latents)} of "
        f"latents, {format_bytes(outputs)} of outputs and {format_bytes(derivatives)} of "
        f"derivatives, for {len(targets)} prompts. Fewer prompts or rounds=0 take less."
    )


def _bytes(tensor: object) -> int:
    assert hasattr(tensor, "numel")
    return tensor.numel() * tensor.element_size()  # type: ignore[attr-defined]
