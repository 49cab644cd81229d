"""What an input of a model is: prompt, condition, control, or something that is denoised too.

This depends only on the input's number of dimensions and on its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import fx

from pab_compile.passes.graph import ir

from .atoms import size, sources
from .names import TEXT
from .trace import Trace

_TEXT_NAMES = (
    "text",
    "encoder_hidden_states",
    "prompt",
    "context",
    "caption",
    "txt",
    "cap_",
    "input_ids",
)
LATENT_NAMES = ("hidden_states", "latents", "noisy_latents", "sample", "x")
"""What models call their latents. A condition may have one of these words in its name."""
USUAL_NAME = 2
_LATENT_WORDS = ("latent", "hidden_states", "sample")
_OTHER_NAMES = ("image", "img", "audio", "video", "mask", "latent", "control")
_PLACE = re.compile(r"(\[\d+\])+$")


def is_text(node: fx.Node) -> bool:
    """Whether an input is prompt embeddings: tokens, or those of several layers of an encoder."""
    tensor = ir.tensor(node)
    return is_named_text(node) and tensor is not None and tensor.ndim in (2, 3, 4)


def is_named_text(node: fx.Node) -> bool:
    """Whether an input is called like text."""
    return sounds_like_text(ir.source(node))


def sounds_like_text(name: str) -> bool:
    """Whether an input of this name is text."""
    name = name.lower()
    is_other = any(word in name for word in _OTHER_NAMES)
    return any(word in name for word in _TEXT_NAMES) and not is_other


def sounds_like_latents(name: str) -> int:
    """How much an input of this name sounds like latents: 2 for a usual name, 1 for a word of it.

    ``image_latents`` has such a word. It is a condition if there are ``hidden_states`` beside it.
    """
    name = _PLACE.sub("", name.lower())
    if name in LATENT_NAMES:
        return USUAL_NAME
    return int(any(word in name for word in _LATENT_WORDS) and "encoder" not in name)


def axis_name(node: fx.Node) -> str:
    """Name of an input's own token axis."""
    return TEXT if is_named_text(node) else ir.source(node)


def is_alike(node: fx.Node, latents: fx.Node) -> bool:
    """Whether an input is the latents, or similar to them, such as a control video."""
    if node is latents or in_one_list(node, latents):
        return True
    ranks = [0 if (t := ir.tensor(n)) is None else t.ndim for n in (node, latents)]
    return ranks[0] == ranks[1] > 3 and not is_text(node) and not ir.is_eager(node)


def in_one_list(node: fx.Node, other: fx.Node) -> bool:
    """Whether two inputs are entries of one list that the caller passes."""
    places = [_PLACE.search(ir.source(n)) for n in (node, other)]
    lists = [_PLACE.sub("", ir.source(n)) for n in (node, other)]
    return None not in places and lists[0] == lists[1]


def find_siblings(
    inputs: Sequence[fx.Node],
    main: Sequence[int],
    latents: int,
    outputs: Sequence[fx.Node],
    trace: Trace,
) -> tuple[fx.Node, ...]:
    """Inputs that are denoised together with the latents.

    These are the other entries of the latents' list (one picture each). They are also inputs with
    an output of their own, which has the same shape and axes.
    """
    taken = _answer(inputs[latents], latents, outputs, trace)
    found: list[fx.Node] = []
    for number in main:
        node = inputs[number]
        if number == latents:
            continue
        if in_one_list(node, inputs[latents]):
            found.append(node)
            continue
        rest = [output for output in outputs if output is not taken]
        if taken is not None and not is_text(node) and _answer(node, number, rest, trace):
            found.append(node)
    return tuple(found)


def _answer(node: fx.Node, number: int, outputs: Sequence[fx.Node], trace: Trace) -> fx.Node | None:
    """The output that has the shape and the axes of an input. Its channels may be new."""
    for output in outputs:
        dims = trace.of(output)
        own = [number in sources(dim) for dim in dims if size(dim) > 1]
        if ir.shape(output) == ir.shape(node) and len(own) - sum(own) <= 1 < len(own):
            return output
    return None
