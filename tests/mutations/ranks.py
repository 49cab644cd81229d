"""Faults in what ranks compare."""

from __future__ import annotations

from .mutation import Mutation

RANKS = (
    Mutation(
        "pab_compile/live/gather_weights.py",
        "a layer computes with weights as they were before others were loaded",
        "                flat[shard.name] = shard.flat()",
        "                pass",
        ("tests/ranks/test_sharded_weights.py",),
    ),
    Mutation(
        "passes/sites/hoisting.py",
        "gathered weights are stored for the whole generation",
        "CASTS | _GATHERS |",
        "CASTS |",
        ("tests/ranks/test_sharded_weights.py",),
    ),
    Mutation(
        "passes/parallel/emit_ring.py",
        "keys that a row does not see count as keys with a score of zero",
        "        if mask is not None:\n            sees",
        "        if False:\n            sees",
        ("tests/passes/parallel/test_ring.py",),
    ),
    Mutation(
        "passes/parallel/emit_ring.py",
        "keys of the prompt count once per rank of a ring",
        "part = self._columns(mask, place, False)",
        "part = self._columns(mask, place, True)",
        ("tests/passes/parallel/test_ring.py",),
    ),
    Mutation(
        "passes/parallel/emit_ring.py",
        "the prompt is passed on with the tokens",
        "        stop = part.full - part.after\n"
        "        return self._to.slice(x, part.dim, part.before, stop, self._node)",
        "        return x",
        ("tests/passes/parallel/test_ring.py",),
    ),
    Mutation(
        "passes/parallel/ring.py",
        "a causal attention is merged from parts that are not",
        'if ir.argument(node, 5, "is_causal", False):',
        "if False:",
        ("tests/passes/parallel/test_ring.py",),
    ),
    Mutation(
        "pab_compile/forecast/auto.py",
        "ranks follow predictions of their own",
        'team.agree({PROGRAM: "not understood" if table is None else str(table)})',
        "team.agree({})",
        ("tests/ranks/test_batch_parallel.py",),
    ),
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
        "pab_compile/ranks/halves.py",
        "the second call of a step may have other latents than the first one",
        "            if why := _difference(pair.shared, turn):\n"
        "                raise ShardingError(_refusal(why))\n",
        "",
        ("tests/ranks/test_batch_parallel.py",),
    ),
    Mutation(
        "pab_compile/ranks/halves.py",
        "both halves compute the call with the prompts of the first one",
        "inputs = [own[n] if n in turn.prompts else x for n, x in enumerate(turn.inputs)]",
        "inputs = list(turn.inputs)",
        ("tests/ranks/test_batch_parallel.py",),
    ),
    Mutation(
        "passes/parallel/view_rules.py",
        "a write along the sharded axis may move its positions",
        "is_it = shards[written] == part",
        "is_it = True",
        ("tests/passes/parallel/test_rules.py",),
    ),
    Mutation(
        "passes/parallel/local_call.py",
        "a write behind the sharded positions goes to where it went in the whole tensor",
        "start, part = _moved(bounds[0], out, ranks), piece_of(out, *bounds)",
        "start, part = bounds[0], piece_of(out, *bounds)",
        ("tests/passes/parallel/test_rules.py",),
    ),
    Mutation(
        "passes/parallel/localise.py",
        "a sum over the sharded axis is that of one rank",
        "switched = self._emitter.add_up(x, crossing.node)",
        "switched = x",
        ("tests/passes/parallel/test_layout.py",),
    ),
    Mutation(
        "passes/parallel/layout.py",
        "ranks draw random numbers of their own between shards",
        "if is_after_all or (self._may_detour and not any(map(ir.is_random, core))):",
        "if is_after_all or self._may_detour:",
        ("tests/passes/parallel/test_layout.py",),
    ),
    Mutation(
        "pab_compile/ranks/together.py",
        "each rank keeps its own latents with the inputs of the first rank",
        "return self._sent(tensors, place) if self._sends else tensors",
        "return tensors",
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/together.py",
        "ranks do not compare what their plans decide",
        'DECISIONS: f"{len(moment.reused)} sites, {moment.decisions.digest()}",',
        'DECISIONS: "",',
        ("tests/ranks/test_differences.py",),
    ),
    Mutation(
        "pab_compile/ranks/groups.py",
        "ranks that are only some of all processes cannot leave their groups",
        "        if len(mesh) == dist.get_world_size():\n            return True\n",
        "        if len(mesh) != dist.get_world_size():\n            return False\n",
        ("tests/ranks/test_lost.py",),
    ),
    Mutation(
        "pab_compile/ranks/team.py",
        "a rank that missed an attempt to begin anew never meets the others again",
        "        while self._store_has([_CLOSED]):",
        "        while False:",
        ("tests/ranks/test_lost.py",),
    ),
    Mutation(
        "passes/graph/refusals.py",
        "weights that ranks share are taken for whole ones",
        "    if shared:\n",
        "    if False:\n",
        ("tests/ranks/test_sharded_weights.py",),
    ),
)
