"""Faults in what is taken over from one size to others."""

from __future__ import annotations

from .mutation import Mutation

OPEN_SIZES = (
    Mutation(
        "pab_compile/compile/executor.py",
        "half of a batch runs with the sizes of another request",
        "        other.half_batch = self.half_batch.at(sizes)\n",
        "",
        ("tests/compile/test_guidance.py",),
    ),
    Mutation(
        "passes/graph/size.py",
        "what a pass compared need not hold for other sizes",
        "self.conditions.found[Condition(compare, left, right, result)] = None",
        "pass",
        ("tests/passes/graph/test_size.py",),
    ),
    Mutation(
        "passes/graph/unify.py",
        "expressions that two sizes do not tell apart may differ elsewhere",
        "self._opened.found[Condition(operator.eq, expression, each, True)] = None",
        "pass",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "passes/graph/opening.py",
        "a size that differs from what is known is not noticed",
        "if known.sizes != found.sizes:",
        "if False:",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "passes/graph/open_sizes.py",
        "sizes below those of torch's symbols are taken",
        "known = (0, 0), self._are_in_range(key)",
        "known = (0, 0), True",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "pab_compile/compile/open_function.py",
        "a generation has other cache entries in the graph of all sizes than in its own",
        "self._keys[sizes] = self._piece.key_at(sizes)",
        'self._keys[sizes] = f"{self._piece.key} {sizes}"',
        ("tests/compile/test_open_sizes.py",),
    ),
    Mutation(
        "passes/graph/other_sizes.py",
        "a graph is captured at sizes that it is not right for",
        "return in_range and all(guard.xreplace(known) == sympy.true for guard in guards)",
        "return in_range",
        ("tests/passes/graph/test_other_sizes.py",),
    ),
    Mutation(
        "pab_compile/compile/open_function.py",
        "a piece gets tensors of other strides than it was compiled for",
        "return function if fits and self.admits(sizes) else None",
        "return function if self.admits(sizes) else None",
        ("tests/compile/test_open_function.py",),
    ),
    Mutation(
        "pab_compile/compile/build.py",
        "the bytes of one size are shown for all",
        "resize(merged.graph_module, sizes)",
        "pass",
        ("tests/compile/test_open_sizes.py",),
    ),
    Mutation(
        "passes/graph/unify.py",
        "a fraction that two sizes agree on is taken for a constant",
        "if is_other and any(",
        "if False and any(",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "passes/graph/unify.py",
        "elements that two sizes agree on are taken for constants",
        "if is_number and any(",
        "if False and any(",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "passes/graph/unify.py",
        "constants of one size are taken for those of all",
        "if held is not twin and not (",
        "if False and not (",
        ("tests/passes/graph/test_unify.py",),
    ),
    Mutation(
        "passes/graph/join.py",
        "an earlier graph of a forward is seen at the sizes that it was captured at",
        "if part.sizes:",
        "if False:",
        ("tests/compile/test_open_sizes.py",),
    ),
    Mutation(
        "passes/graph/join.py",
        "what was compared with a size of an earlier graph need not hold for other sizes",
        "return lambda size: opened.size(size.expression.xreplace(same))",
        "return lambda size: opened.at(size.expression.xreplace(same), opened.given)",
        ("tests/compile/test_open_sizes.py",),
    ),
    Mutation(
        "pab_compile/compile/parts.py",
        "graphs of a forward have other cache entries behind a graph of all sizes",
        "_identity_of(closed_at(part.graph_module, sizes), place)",
        "_identity_of(part.graph_module, place)",
        ("tests/compile/test_open_sizes.py",),
    ),
)
