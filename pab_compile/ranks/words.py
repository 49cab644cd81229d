"""Words: what a rank says of a call, and what it means if the ranks say different things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

Words = dict[str, str]
"""Fact about a call -> what a rank says of it. All ranks must say the same."""

CALL = "call"
INPUT = "input "
WEIGHT = "weight "
WEIGHTS = "weights"
PROGRAM = "program"
SIZES = "sizes"
COMPILES = "compiles the model"
DECISIONS = "decisions"
TIMESTEPS = "timesteps"
_SHOWN = 3

_ADVICE = {
    CALL: "Every rank must make the same calls of the model in the same order, with the same "
    "number of steps.",
    INPUT: "Every rank needs the same inputs: give the pipeline a generator with one seed, and "
    'the same prompt. Or set options={"inputs": "first rank"}.',
    WEIGHT: "Load the same weights and adapters on every rank.",
    DECISIONS: "The plan decides otherwise on these ranks. A plan that is a function must decide "
    "the same on every rank, whatever it reads besides its arguments.",
    PROGRAM: "Compile and call the model in the same way on every rank.",
}


def differing(said: Sequence[Words]) -> list[str]:
    """The facts that not all ranks state alike, in the order in which the ranks state them."""
    names = dict.fromkeys(name for words in said for name in words)
    return [name for name in names if len({words.get(name) for words in said}) > 1]


def difference(said: Sequence[Words], numbers: Sequence[int]) -> str:
    """The message for ranks that say different things.

    Args:
        said: what each rank says.
        numbers: of the ranks, as the message names them.
    """
    names = differing(said)

    def both(name: str) -> str:
        return _both(said, name, numbers)

    if CALL in names:  # all else follows from it
        return f"The ranks of the mesh are at different calls: {both(CALL)}. {_ADVICE[CALL]}"
    if PROGRAM in names:
        return (
            "The ranks of the mesh do not run the same program, so they would wait for one another "
            f"for ever. Options, plan, model or sizes of the inputs differ: {both(PROGRAM)}."
            f" {_ADVICE[PROGRAM]}"
        )
    found = "; ".join(f"{name} ({both(name)})" for name in names[:_SHOWN])
    more = f"; and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    sort = next((sort for sort in (INPUT, WEIGHT) if names[0].startswith(sort)), CALL)
    if names[0] == SIZES:
        sort = INPUT
    if DECISIONS in names and TIMESTEPS not in names:
        sort = DECISIONS
    return (
        f"The ranks of the mesh differ, so their videos would mix. {found}{more}. {_ADVICE[sort]}"
    )


def sizes_of(inputs: Iterable[tuple[str, torch.Tensor]]) -> str:
    """The sizes of what the caller gives, in one form on every rank."""
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs)


def some_compile(said: Sequence[Words]) -> bool:
    """Whether some ranks compile what the others have compiled, for inputs of the same sizes."""
    are_alike = len({words.get(SIZES) for words in said}) == 1
    return are_alike and any(words.get(CALL, "").startswith(COMPILES) for words in said)


def _both(said: Sequence[Words], name: str, numbers: Sequence[int]) -> str:
    """What the first rank says, and what the first rank says that says something else."""
    values = [words.get(name, "nothing") for words in said]
    other = next(rank for rank, value in enumerate(values) if value != values[0])
    return f"rank {numbers[0]}: {values[0]}; rank {numbers[other]}: {values[other]}"


def unreachable(error: BaseException) -> str:
    """The message if the store of the processes is gone."""
    return (
        "The other ranks of the mesh cannot be reached any more, since the process that has the "
        f"store of the processes, usually rank 0, has ended: {in_words(error)}"
    )


def in_words(error: BaseException) -> str:
    """An error as one line of text."""
    return f"{type(error).__name__}: {error}"
