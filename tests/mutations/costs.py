"""Optimisations that are taken out: nothing becomes wrong, but a count of the suite grows."""

from __future__ import annotations

from .mutation import Mutation

STEP_COUNTS = "tests/compile/test_step_counts.py"
COSTS = "tests/compile/test_costs.py"

SLOWER = (
    Mutation(
        "pab_compile/compile/lower.py",
        "equal pieces are compiled one by one",
        "        function = self._compiled.get(key)\n",
        "        function = None\n",
        ("tests/compile/test_lower.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "a step computes what only the branches read that it reuses",
        "registers.update(() if loads else op.inputs)",
        "registers.update(op.inputs)",
        ("tests/compile/test_reuse_cost.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "what is kept is copied though nobody writes to it",
        "return copy_of(tensor) if self._must_copy or is_returned else tensor",
        "return copy_of(tensor)",
        (STEP_COUNTS,),
    ),
    Mutation(
        "pab_compile/compile/build.py",
        "a step that reuses adds the output of every site",
        "coalesces = options.coalesce and not request.is_observed",
        "coalesces = False",
        ("tests/dits/test_kernels.py",),
    ),
    Mutation(
        "pab_compile/compile/build.py",
        "sites that are always reused together keep a tensor each",
        "coalesces = options.coalesce and not request.is_observed",
        "coalesces = False",
        (STEP_COUNTS,),
    ),
    Mutation(
        "pab_compile/compile/build.py",
        "a graph is cut though nothing is reused",
        "return request.is_observed or (reuses and has_branch(site, settings.plan))",
        "return True",
        (STEP_COUNTS,),
    ),
    Mutation(
        "passes/pipeline.py",
        "products and sums of one op of the model stay apart",
        "fused, num_sums = fuse_sums(program.graph_module)",
        "fused, num_sums = program.graph_module, 0",
        ("tests/passes/rewrite/test_fusing.py",),
    ),
    Mutation(
        "passes/rewrite/pieces.py",
        "what is the same at every step is computed at every step",
        "hoisted = hoisted_nodes(graph_module.graph) if hoist else set()",
        "hoisted = set()",
        ("tests/passes/rewrite/test_pieces.py", STEP_COUNTS),
    ),
    Mutation(
        "passes/rewrite/repeats.py",
        "a row of calls is not cut where blocks repeat",
        "        self._search(range(len(self._row)), found)\n",
        "        found.append((range(len(self._row)), False))\n",
        ("tests/passes/rewrite/test_repeats.py",),
    ),
    Mutation(
        "pab_compile/runtime/clock.py",
        "every step reads the timestep from the device, also that of a known table",
        "    if table is not None:\n",
        "    if table is not None and timestep.item() is None:\n",
        (COSTS,),
    ),
    Mutation(
        "pab_compile/runtime/weights.py",
        "every step asks Python about each weight",
        '_version_of = operator.attrgetter("_version")',
        "_version_of = lambda weight: weight._version",
        (COSTS,),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "what no later step reuses is kept",
        "            if decision.history is not None:\n"
        "                self._shorten(op, decision.history)\n"
        "            return loaded\n",
        "            return loaded\n",
        (COSTS,),
    ),
    Mutation(
        "passes/graph/trace_calls.py",
        "equal calls are traced one by one",
        "ops = self._traced.get(key)",
        "ops = None",
        ("tests/passes/graph/test_trace_calls.py",),
    ),
    Mutation(
        "passes/graph/walk.py",
        "a walk comes by the whole graph for every region",
        "    return sorted(dict.fromkeys(nodes))  # a node is less than those behind it\n",
        "    wanted = set(nodes)\n"
        "    graph = next((node.graph for node in wanted), fx.Graph())\n"
        "    return [node for node in graph.nodes if node in wanted]\n",
        ("tests/passes/test_growth.py",),
    ),
    Mutation(
        "pab_compile/compile/trace_store.py",
        "a graph that another process traced is traced again",
        "found = _load(path, key, tensors)",
        "found = None",
        ("tests/compile/test_trace_store.py",),
    ),
    Mutation(
        "pab_compile/backend.py",
        "each further size is captured and compiled anew",
        "others = self._open.get(key, ())",
        "others: Any = ()",
        ("tests/compile/test_open_sizes.py",),
    ),
    Mutation(
        "pab_compile/compile/background.py",
        "with warm in the background, a step waits until its pieces are compiled",
        "self._submit(self._prepare(args), _device_of(args))",
        "self._compiled = self._prepare(args)()",
        ("tests/compile/test_background.py",),
    ),
    Mutation(
        "pab_compile/compile/lowering.py",
        "what runs once per generation is compiled",
        "            return Lowered(key, module.compute.forward)\n",
        "            pass\n",
        (STEP_COUNTS,),
    ),
    Mutation(
        "pab_compile/live/handle.py",
        "Dynamo traces the model again for each plan",
        "        self._live.set(self._choice(plan))\n\n    def off",
        "        __import__('torch').compiler.reset()\n"
        "        self._live.set(self._choice(plan))\n\n    def off",
        ("tests/live/test_switching.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "a tensor within a step stays in memory after its last use",
        "            for register in op.frees:\n                registers[register] = None",
        "            pass",
        (COSTS,),
    ),
    Mutation(
        "passes/parallel/append.py",
        "each op of each block is sharded by itself",
        "if key in self._known:",
        "if False:",
        ("tests/passes/parallel/test_append.py",),
    ),
    Mutation(
        "passes/parallel/placement.py",
        "an axis is looked for again in each equal dimension",
        "if dim not in axis.known:",
        "if True:",
        ("tests/passes/parallel/test_placement.py",),
    ),
    Mutation(
        "passes/graph/minimum_cut.py",
        "equal blocks have a minimum cut each",
        "@functools.lru_cache(maxsize=1024)\n",
        "",
        ("tests/passes/graph/test_minimum_cut.py",),
    ),
)
