"""Faults in what graphs are read as: capture, axes, and how ranks share them."""

from __future__ import annotations

from .mutation import Mutation

GRAPHS = (
    Mutation(
        "passes/graph/rejoin.py",
        "a concatenation of parts with a gap between them is taken for the whole",
        "part is None or part.start != place or",
        "part is None or",
        ("tests/passes/graph/test_rejoin.py",),
    ),
    Mutation(
        "passes/graph/rejoin.py",
        "a graph returns its own input in the place of a copy",
        " and not _is_returned(node)",
        "",
        ("tests/passes/graph/test_rejoin.py",),
    ),
    Mutation(
        "passes/graph/structure.py",
        "pieces of different layouts share one compiled function",
        'lines.append(f"input {ir.layout(node)}")',
        'lines.append("input")',
        ("tests/passes/graph/test_structure.py",),
    ),
    Mutation(
        "passes/graph/noise.py",
        "dropout of a model in training is removed",
        'ir.argument(node, 2, "train", True)',
        'ir.argument(node, 9, "train", False)',
        ("tests/passes/graph/test_capture.py",),
    ),
    Mutation(
        "passes/graph/tracing.py",
        "a graph that writes to its inputs is traced as if it did not",
        "return None if writes else captured",
        "return captured",
        ("tests/passes/graph/test_capture.py",),
    ),
    Mutation(
        "passes/graph/inputs.py",
        "a program serves other sizes than its own",
        "return (*(_plain(args[i]) for i in self.used), *layouts)",
        "return tuple(_plain(args[i]) for i in self.used)",
        ("tests/passes/graph/test_inputs.py",),
    ),
    Mutation(
        "passes/graph/sizes_only.py",
        "a gate laid out like the latents depends on them",
        "if name in _FILLS:",
        "if name in ():",
        ("tests/passes/graph/test_sizes_only.py",),
    ),
    Mutation(
        "passes/graph/fused.py",
        "sums are put together although something else reads their product",
        "if len(arg.users) != 1:",
        "if False:",
        ("tests/passes/graph/test_fused.py",),
    ),
    Mutation(
        "passes/graph/inlining.py",
        "what a checkpoint wraps stays an op of its own",
        '_WRAPPERS = ("tag_activation_checkpoint", ',
        "_WRAPPERS = (",
        ("tests/passes/graph/test_inlining.py",),
    ),
    Mutation(
        "passes/axes/algebra.py",
        "unlike axes of one input are taken for one",
        "    if left is right:\n        return False\n    return any(",
        "    if left is right or True:\n        return False\n    return any(",
        ("tests/passes/axes",),
    ),
    Mutation(
        "passes/axes/input_roles.py",
        "a condition with a word of latents in its name is denoised in the place of the latents",
        "        return 2\n    return int(",
        "        return 1\n    return int(",
        ("tests/passes/axes/test_input_roles.py",),
    ),
    Mutation(
        "passes/axes/names.py",
        "frames are called rows",
        '"t"',
        '"h"',
        ("tests/passes/axes/test_names.py", "tests/passes/axes"),
    ),
    Mutation(
        "passes/parallel/shard.py",
        "positions that do not divide are lost",
        "least + (rank < more)",
        "least",
        ("tests/passes/parallel",),
    ),
    Mutation(
        "passes/parallel/rules.py",
        "ranks draw random numbers of their own",
        "if ir.is_random(node):",
        "if False:",
        ("tests/passes/parallel/test_rules.py",),
    ),
    Mutation(
        "passes/graph/capture.py",
        "a tensor of the tracer may be a constant",
        "if not any(map(is_fake, inputs.tensors(args))):",
        "if False:",
        ("tests/passes/graph/test_constants.py",),
    ),
    Mutation(
        "passes/graph/ir.py",
        "a site is named after the hook around its module",
        '_AROUND_FORWARD.sub("", dotted)',
        "dotted",
        ("tests/passes/graph/test_ir.py",),
    ),
)
