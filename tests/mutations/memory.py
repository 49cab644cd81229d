"""Faults in what is kept in memory: weights of layers, programs, cached tensors."""

from __future__ import annotations

from .mutation import Mutation

MEMORY = (
    Mutation(
        "pab_compile/runtime/weights.py",
        "a weight whose memory moved counts as unchanged",
        "return now == self._addresses or all(",
        "return now != self._addresses or all(",
        ("tests/runtime/test_weights.py",),
    ),
    Mutation(
        "pab_compile/runtime/allowance.py",
        "what was cached before the budget became short stays wide",
        "entry.narrow(NARROWEST)",
        "pass",
        ("tests/compile/test_cache_budget.py",),
    ),
    Mutation(
        "pab_compile/plans/budget.py",
        "what is narrowed for a short budget counts as wide",
        "chosen([claim.narrowed() for claim in claims], limit, num_lanes), True",
        "kept, True",
        ("tests/compile/test_cache_budget.py",),
    ),
    Mutation(
        "pab_compile/runtime/last_runs.py",
        "a compilation has the statistics of another one with equal options",
        "return self.context() is compilation.context",
        "return self.options == compilation.options",
        ("tests/runtime/test_several_models.py",),
    ),
    Mutation(
        "pab_compile/live/bring_weights.py",
        "a hook still runs around a layer that brings its weights",
        "    _ignore(reference, undo)\n    forward",
        "    forward",
        ("tests/live/test_layer_hooks.py",),
    ),
    Mutation(
        "pab_compile/live/bring_weights.py",
        "a model keeps the weights of its hooks after disable",
        "    undo.callback(place.__setitem__, last, empty)\n",
        "",
        ("tests/live/test_layer_hooks.py",),
    ),
    Mutation(
        "pab_compile/live/bring_weights.py",
        "a layer computes with its weights in their small type",
        "return is_elsewhere or (is_other and tensor.is_floating_point())",
        "return is_elsewhere",
        ("tests/live/test_layer_hooks.py",),
    ),
    Mutation(
        "pab_compile/compile/program_store.py",
        "the program of a generation that runs is dropped",
        "key != newest and not self._is_in_use(self._programs[key])",
        "key != newest",
        ("tests/compile/test_program_store.py",),
    ),
    Mutation(
        "pab_compile/compile/program_store.py",
        "programs of all sizes are kept",
        "del self._programs[key]",
        "pass",
        ("tests/compile/test_program_store.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "a row of zeros is divided by 0",
        "    scale.clamp_(min=torch.finfo(wide).tiny)  # a row of zeros\n",
        "",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "an infinite number comes back as a finite one",
        "    rows.masked_fill_(rows.isinf(), torch.nan)",
        "    ",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "one number that is not finite spoils its row",
        "finite = tensor.nan_to_num(0.0, 0.0, 0.0)",
        "finite = tensor",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "a number beyond float16 becomes infinite",
        "    if torch.finfo(tensor.dtype).max > 2 * most:\n",
        "    if False:\n",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "all rows have one scale",
        "dim=-1, keepdim=True)",
        "dim=None, keepdim=True)",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "what comes back has other strides",
        "if data.dtype != self.dtype or data.stride() != self.stride:",
        "if data.dtype != self.dtype:",
        ("tests/runtime/test_kept.py",),
    ),
    Mutation(
        "pab_compile/runtime/kept.py",
        "what comes from the host is read before it was waited for",
        "else p.receive() for p in",
        "else (p.request(), p.coming)[1] for p in",
        ("tests/compile/test_cache_offload.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "what the caller may write to is sent to the host without a copy",
        "return tensor if is_new else self.cacheable(tensor, is_returned)",
        "return tensor",
        ("tests/compile/test_cache_offload.py",),
    ),
    Mutation(
        "pab_compile/plans/cache_dtype.py",
        "a budget counts what is narrow as wide",
        "        if converted is not None:\n            found -=",
        "        if False:\n            found -=",
        ("tests/compile/test_cache_dtype.py",),
    ),
)
