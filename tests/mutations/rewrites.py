"""Faults in what graphs are rewritten to: pieces, sums, and what a step needs."""

from __future__ import annotations

from .mutation import Mutation

COALESCE = (
    "tests/passes/rewrite/test_coalesce.py",
    "tests/passes/rewrite/test_coalesce_streams.py",
)

REWRITES = (
    Mutation(
        "passes/rewrite/merge.py",
        "the end of a stretch is the start of another one of its own branch",
        "        leaving.update(cut)  # a returned end may be the start of another\n",
        "",
        COALESCE,
    ),
    Mutation(
        "passes/rewrite/fusing.py",
        "a merged site with a fused sum hands on what it cached, without the start",
        "StepBranch(branch.site, compute, branch.starts)",
        "StepBranch(branch.site, compute)",
        ("tests/passes/rewrite/test_fusing.py", "tests/models/test_residual_forms.py"),
    ),
    Mutation(
        "passes/rewrite/merge.py",
        "a merged site may feed itself",
        "return [] if not region or feeds_itself else [site]",
        "return [site]",
        COALESCE,
    ),
    Mutation(
        "passes/rewrite/merge.py",
        "sums that save no memory are cached",
        "if _bytes(sums, group, chosen) >= _bytes(sums, group, ()):",
        "if False:",
        COALESCE,
    ),
    Mutation(
        "passes/rewrite/coalesce.py",
        "a reuse may compute more than without coalescing",
        "        if more:\n",
        "        if False:\n",
        COALESCE,
    ),
    Mutation(
        "passes/rewrite/demand.py",
        "what a reuse adds to a difference is not needed",
        "to_load[starts[node]] = _union(to_load.get(starts[node], frozenset()), names)",
        "pass",
        ("tests/passes/rewrite/test_demand.py",),
    ),
    Mutation(
        "passes/rewrite/watched.py",
        "a modulation per token runs at every step",
        "return ir.binding(node) == Binding.STEP and any(num > 1 for num in rows)",
        "return False",
        ("tests/passes/rewrite/test_demand.py",),
    ),
    Mutation(
        "passes/rewrite/sums.py",
        "what is scaled by the step is loaded as it was scaled before",
        "ir.binding(n) != Binding.STEP for n in node.all_input_nodes",
        "True for n in node.all_input_nodes",
        ("tests/passes/rewrite/test_residual_sums.py",),
    ),
    Mutation(
        "passes/rewrite/pieces.py",
        "values that change at every step are computed once",
        "hoisted = hoisted_nodes(graph_module.graph) if hoist else set()",
        "hoisted = {n for n in graph_module.graph.nodes if ir.is_plain_call(n) "
        "and ir.binding(n) is not None and ir.binding(n) < 3 and not ir.has_effect(n)}",
        ("tests/passes/rewrite/test_pieces.py",),
    ),
    Mutation(
        "passes/sites/binding.py",
        "what depends on the timestep too is kept as long as Python makes the same tensors",
        "is_found &= all(n in found or _is_early(n) for n in node.all_input_nodes)",
        "is_found &= any(n in found for n in node.all_input_nodes)",
        ("tests/runtime/test_watched.py",),
    ),
    Mutation(
        "passes/rewrite/verify.py",
        "lost ops are not noticed",
        'raise InvariantError(f"ops were lost',
        'print(f"ops were lost',
        ("tests/passes/rewrite/test_verify.py",),
    ),
    Mutation(
        "passes/rewrite/merge.py",
        "a sum holds what the step scales anew",
        "        if any(ir.binding(n) == Binding.STEP for n in node.all_input_nodes):\n"
        "            return True\n",
        "",
        ("tests/passes/rewrite/test_residual_sums.py",),
    ),
)
