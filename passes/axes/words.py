"""Words: what users may write as axes of an input, and the words that they probably mean."""

from __future__ import annotations

import difflib

_MEANINGS = {
    "b": "batch",
    "c": "channels",
    "t": "frames",
    "h": "rows",
    "w": "columns",
    "s": "tokens of a whole video or picture in one row",
    "text": "tokens of the prompt",
}
_MEANT = {
    **dict.fromkeys(("batch", "batch_size", "bs", "n_batch"), "b"),
    **dict.fromkeys(("channels", "ch", "features", "dim", "d_model"), "c"),
    **dict.fromkeys(("frame", "frames", "f", "time", "temporal", "num_frames"), "t"),
    **dict.fromkeys(("height", "row", "rows", "y"), "h"),
    **dict.fromkeys(("width", "col", "cols", "column", "columns", "x"), "w"),
    **dict.fromkeys(("seq", "seq_len", "sequence", "token", "tokens"), "s"),
}
_ROLES = ("step", "prompt")
_KNOWN = (*_MEANINGS, "channel", *_ROLES, "held", "clock")


def wrong_word(stated: str) -> str:
    """What is wrong with the words that an input's axes are stated by; ``""`` if nothing is.

    A word that is none of the usual ones is an axis of its own, so only words that surely mean
    something else are wrong.

    Args:
        stated: the words, such as ``"b c t h w"``, or ``"step"``.
    """
    words = stated.split()
    if not words:
        return f"it is empty: give one word per dimension. {_known()}"
    for word in words:
        if word not in _KNOWN and (meant := _meant(word, alone=len(words) == 1)):
            return f"{word!r} is no known axis; did you mean {meant!r}? {_known()}"
    mixed = [word for word in words if word in _ROLES and len(words) > 1]
    if mixed:
        return f"{mixed[0]!r} is said of a whole input, so it stands alone. {_known()}"
    return ""


def _meant(word: str, alone: bool) -> str:
    lower = word.lower()
    if lower in _MEANT or (lower != word and lower in _KNOWN):
        return _MEANT.get(lower, lower)
    if alone and len(word) > 2 and set(word) <= set("bcthws") and len(set(word)) == len(word):
        return " ".join(word)
    names = (*_ROLES, "text", "channel") if len(word) > 3 else ()
    return next(iter(difflib.get_close_matches(lower, names, 1, 0.75)), "")


def _known() -> str:
    meanings = ", ".join(f"{word} ({meaning})" for word, meaning in _MEANINGS.items())
    return (
        f'Axes are {meanings}, in the order of the dimensions: "b c t h w". "step" and "prompt" '
        "say of a whole input that it changes at every step, or never."
    )
