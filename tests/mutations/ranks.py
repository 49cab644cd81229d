"""Faults in what ranks compare."""

from __future__ import annotations

from .mutation import Mutation

RANKS = (
    Mutation(
        "pab_compile/ranks/together.py",
        "ranks do not agree on the calls of a first step",
        "if not self._team.course.follows(moment):",
        "if False:",
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/together.py",
        "ranks do not compare their inputs",
        "        said |= self._prints(tensors, names)\n",
        "",
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/together.py",
        "ranks do not compare their weights",
        "said[WEIGHTS] = self._print_of_weights(tensors)",
        'said[WEIGHTS] = ""',
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/course.py",
        "latents that differ at the second step are not compared",
        "return is_next and step > self._first_step + 1",
        "return is_next",
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/together.py",
        "each rank keeps its own latents with the inputs of the first rank",
        "return self._sent(tensors, place) if self._sends else tensors",
        "return tensors",
        ("tests/ranks/test_differences.py",),
    ),
)
