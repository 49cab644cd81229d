"""Call roles: what the tensors of a call mean, by their names and shapes alone.

With ``cut="output"`` the graphs of a forward need not be understood. Latents and timestep may then
be known before any graph is: Python code may take them apart before the first graph that has both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from pab_compile.passes.axes.input_roles import LATENT_NAMES, sounds_like_text
from pab_compile.passes.graph.number_inputs import sounds_like_time
from pab_compile.passes.sites.binding import STATED_CLOCK, STATED_PROMPT, STATED_STEP

from .input_roles import InputRoles

_CLOCK_NAMES = (("timestep",), ("timesteps", "t"))  # the surest first
_ENTRY = re.compile(r"(\[\d+\])+$")


def roles_of_call(
    inputs: Mapping[str, torch.Tensor], stated: Mapping[str, str]
) -> InputRoles | None:
    """The roles of a call's tensors; None if latents or timestep are not certain.

    Only one input may look like the timestep: one number, or one per row, with a name of time. Only
    one, or one list, may look like latents: floating, with three dimensions or more, and not called
    like text. All other inputs distinguish requests.

    Args:
        inputs: name -> tensor that the caller passes.
        stated: the user's ``axes`` option.
    """
    clocks = [name for name, tensor in inputs.items() if _is_clock(name, tensor, stated)]
    surer = [
        [n for n in clocks if stated.get(n) == STATED_CLOCK],
        *([n for n in clocks if n in names] for names in _CLOCK_NAMES),
        [n for n in clocks if stated.get(n)],
    ]
    clocks = next((better for better in surer if len(better) == 1), clocks)
    lists: dict[str, list[str]] = {}
    for name, tensor in inputs.items():
        if _may_be_latents(name, tensor, stated):
            lists.setdefault(_ENTRY.sub("", name), []).append(name)
    known = [name for name in lists if _states_axes(name, stated)] or [
        name for name in lists if name in LATENT_NAMES
    ]
    if len(lists) > 1 and len(known) == 1:
        lists = {known[0]: lists[known[0]]}
    if len(clocks) != 1 or len(lists) != 1:
        return None
    (clock,), ((latents, *others),) = clocks, lists.values()
    stepping = [
        *others,
        *(n for n in inputs if stated.get(n) == STATED_STEP),
        *(n for n, tensor in inputs.items() if _is_clock(n, tensor, stated)),
    ]
    changing = {latents, clock, *stepping}
    return InputRoles(
        latents=latents,
        clock=clock,
        prompt_inputs=tuple(name for name in inputs if name not in changing),
        may_step=(),
        stepping=tuple(dict.fromkeys(name for name in stepping if name != clock)),
        sees_all=False,
        is_blind=False,
        weights=(),
    )


def _is_clock(name: str, tensor: torch.Tensor, stated: Mapping[str, str]) -> bool:
    if stated.get(name) == STATED_CLOCK:
        return True
    is_timely = sounds_like_time(name) or stated.get(name) == STATED_STEP
    return is_timely and stated.get(name) not in STATED_PROMPT and tensor.ndim < 2


def _may_be_latents(name: str, tensor: torch.Tensor, stated: Mapping[str, str]) -> bool:
    if _states_axes(name, stated):
        return True
    is_known = name in stated or sounds_like_text(name) or sounds_like_time(name)
    return not is_known and tensor.is_floating_point() and tensor.ndim > 2


def _states_axes(name: str, stated: Mapping[str, str]) -> bool:
    """Whether the user states the axes of an input, as of latents that cannot be inferred."""
    return " " in stated.get(name, "")
