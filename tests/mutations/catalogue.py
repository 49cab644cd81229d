"""The mutations: one place each, what is broken there, and the tests that should notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """A fault in one place of the library.

    Attributes:
        path: the source file.
        what: what no longer holds.
        old: text that occurs in the file exactly once.
        new: what takes its place.
        tests: files or folders of tests, the likeliest first.
    """

    path: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The source with the fault.

        Raises:
            ValueError: the text does not occur exactly once: the mutation is stale.
        """
        if (count := source.count(self.old)) != 1:
            raise ValueError(
                f"{self.path}: {self.old!r} occurs {count} times. Update the mutation."
            )
        return source.replace(self.old, self.new)


MUTATIONS = (
    # passes/graph
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
        "passes/rewrite/fusing.py",
        "a merged site with a fused sum hands on what it cached, without the start",
        "StepBranch(branch.site, compute, branch.starts)",
        "StepBranch(branch.site, compute)",
        ("tests/passes/rewrite/test_fusing.py", "tests/models/test_residual_forms.py"),
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
    # passes/axes
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
    # passes/sites
    Mutation(
        "passes/sites/binding.py",
        "random values count as constants",
        "or ir.is_volatile(node) or ir.is_random(node)",
        "or ir.is_volatile(node)",
        ("tests/passes/sites/test_binding.py", "tests/models/test_foreign_ops.py"),
    ),
    Mutation(
        "passes/sites/binding.py",
        "inputs that may change without notice count as prompts",
        "or ir.is_volatile(node) or ir.is_random(node)",
        "or ir.is_random(node)",
        ("tests/passes/sites/test_binding.py", "tests/runtime/test_broken_forwards.py"),
    ),
    Mutation(
        "passes/sites/may_step.py",
        "tokens that attention reads may be learned as stepping",
        "token_axis not in read",
        "True",
        ("tests/passes/sites/test_may_step.py",),
    ),
    Mutation(
        "passes/sites/hoisting.py",
        "a value of a multi-output op is left behind",
        "if ir.is_getitem(node) and node.all_input_nodes[0] in hoisted:",
        "if False:",
        ("tests/passes/sites/test_hoisting.py",),
    ),
    Mutation(
        "passes/sites/regions.py",
        "mixers of different kinds merge",
        "return len({self._kinds[mixer] for mixer in self._members(groups)}) > 1",
        "return len({self._kinds[mixer] for mixer in self._members(groups)}) > 2",
        ("tests/passes/sites/test_regions.py",),
    ),
    Mutation(
        "passes/sites/inner.py",
        "a stream that a later sum reads is an inner sum",
        "if _is_copy(node, total) and parts(user):",
        "if False:",
        ("tests/passes/sites/test_inner.py",),
    ),
    Mutation(
        "pab_compile/plans/plan.py",
        "a branch of several kinds is reused where one of them is",
        "computes = any(moment.step % range_ == 0 for range_ in self._ranges_of(site))",
        "computes = all(moment.step % range_ == 0 for range_ in self._ranges_of(site))",
        ("tests/plans/test_plan.py", "tests/models/test_inner_branches.py"),
    ),
    Mutation(
        "passes/sites/regions.py",
        "the gate is cached with the attention",
        "if self._keep_gate_outside and any(",
        "if False and any(",
        ("tests/passes/sites/test_regions.py", "tests/passes/sites"),
    ),
    Mutation(
        "passes/sites/regions.py",
        "what is the same at every step dies with a region",
        "if node in hoisted or node in kept:",
        "if node in kept:",
        ("tests/passes/sites/test_regions.py", "tests/passes"),
    ),
    Mutation(
        "passes/sites/beside.py",
        "a branch is one site though a value of it is read elsewhere",
        "            if not found:\n                return",
        "            if False:\n                return",
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/beside.py",
        "what runs beside an attention reads any stream",
        'return "what runs beside it reads a stream that the branch is not added to"',
        'return ""',
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/beside.py",
        "a stream that goes on counts as one that ends in the branch",
        'if node.op == "output" or ir.has_effect(node) or len(pending) > _MAX_NODES:',
        "if False:",
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/beside.py",
        "a branch with random numbers is one site",
        "effects = [node for node in (*region.nodes, *region.beside) if ir.has_effect(node)]",
        "effects = list[fx.Node]()",
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/beside.py",
        "an unknown product of tokens counts as an MLP",
        "return not node_flops(node) or len(latent_inputs(node)) < 2",
        "return True",
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/regions.py",
        "a whole branch is cached at its cheapest cut",
        "    if not growth.is_branch:\n        return cheapest_cut(growth)",
        "    if growth:\n        return cheapest_cut(growth)",
        ("tests/passes/sites/test_beside.py",),
    ),
    Mutation(
        "passes/sites/residual.py",
        "parts of one branch are separate sites, which both compute",
        "found.setdefault(tuple(_root(end, inside) for end in branch.ends), []).append(branch)",
        "found.setdefault(branch.ends, []).append(branch)",
        ("tests/passes/sites/test_residual.py",),
    ),
    Mutation(
        "passes/sites/residual.py",
        "the cut of an MLP lies after its gate",
        "return _shifted(node) if gates else None",
        "return None",
        ("tests/passes/sites/test_residual.py",),
    ),
    Mutation(
        "passes/sites/residual.py",
        "a network that is added to the latents is reused as an MLP, with its final layer",
        "if origin(stream) not in feeding([other]):",
        "if True:",
        ("tests/passes/sites/test_residual.py",),
    ),
    Mutation(
        "passes/sites/adds.py",
        "a stream is the same behind a cast to whole numbers",
        "is_number(node) and is_number(source)",
        "True",
        ("tests/passes/sites/test_adds.py", "tests/passes/sites"),
    ),
    Mutation(
        "passes/sites/adds.py",
        "a mask of the latents chooses between residuals",
        "ir.binding(mask) not in (None, Binding.LATENT)",
        "True",
        ("tests/passes/sites/test_adds.py", "tests/passes/sites"),
    ),
    Mutation(
        "passes/sites/find_sites.py",
        "a region with random numbers is left out",
        "effects = dict.fromkeys(ir.op_name(node) for node in region if ir.has_effect(node))",
        "effects = dict[str, None]()",
        ("tests/passes/sites/test_find_sites.py", "tests/models/test_foreign_ops.py"),
    ),
    # passes/rewrite
    Mutation(
        "passes/rewrite/merge.py",
        "a merged site may feed itself",
        "return [] if not region or feeds_itself else [site]",
        "return [site]",
        ("tests/passes/rewrite/test_coalesce.py",),
    ),
    Mutation(
        "passes/rewrite/merge.py",
        "sums that save no memory are cached",
        "if _bytes(sums, group, chosen) >= _bytes(sums, group, ()):",
        "if False:",
        ("tests/passes/rewrite/test_coalesce.py",),
    ),
    Mutation(
        "passes/rewrite/coalesce.py",
        "a reuse may compute more than without coalescing",
        "        if more:\n",
        "        if False:\n",
        ("tests/passes/rewrite/test_coalesce.py",),
    ),
    Mutation(
        "passes/rewrite/demand.py",
        "what a reuse adds to a difference is not needed",
        "to_load[starts[node]] = _union(to_load.get(starts[node], frozenset()), names)",
        "pass",
        ("tests/passes/rewrite/test_demand.py",),
    ),
    Mutation(
        "passes/rewrite/demand.py",
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
        "passes/rewrite/verify.py",
        "lost ops are not noticed",
        'raise InvariantError(f"ops were lost',
        'print(f"ops were lost',
        ("tests/passes/rewrite/test_verify.py",),
    ),
    # passes/parallel
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
    # pab_compile/plans
    Mutation(
        "pab_compile/plans/plan.py",
        "the window of timesteps contains its upper bound",
        "low < moment.timestep < high",
        "low < moment.timestep <= high",
        ("tests/plans",),
    ),
    Mutation(
        "pab_compile/plans/decisions.py",
        "one output too few stays for a prediction",
        "needed = max(needed, decision.entry + 1)",
        "needed = max(needed, decision.entry, 1)",
        ("tests/plans/test_decisions.py",),
    ),
    Mutation(
        "pab_compile/plans/plan.py",
        "a level reuses in few steps",
        "num_steps is not None and num_steps < self.min_steps",
        "num_steps is not None and num_steps < 0 * self.min_steps",
        ("tests/plans/test_form.py", "tests/live/test_handle.py"),
    ),
    Mutation(
        "pab_compile/plans/form.py",
        "a plan by kind runs in the form of plans that treat all sites alike",
        "return ALL if len(rules) == 1 else KIND",
        "return ALL",
        ("tests/plans/test_form.py",),
    ),
    Mutation(
        "pab_compile/plans/form.py",
        "merged sites need not have one order",
        "if reused and (None in patterns or len(patterns) > 1 or len(reused) < len(site.parts)):",
        "if reused and (None in patterns or len(reused) < len(site.parts)):",
        ("tests/plans/test_form.py",),
    ),
    Mutation(
        "pab_compile/plans/live.py",
        "a plan in a block concerns all threads",
        "token = _used.set({**(_used.get() or {}), id(self): choice})",
        "self._choice, token = choice, _used.set(_used.get())",
        ("tests/plans/test_form.py", "tests/live/test_switching.py"),
    ),
    Mutation(
        "pab_compile/runtime/generation.py",
        "an exchanged plan holds from the middle of a step",
        "if self._chosen_at == self.step:",
        "if self._chosen_at == self.step and choice == self.choice:",
        ("tests/live/test_switching.py",),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "after an exchange, outputs that only the other plan names are reused",
        "return is_sure and cached.steps[-len(sources) :] == sources",
        "return is_sure and cached.last_step == sources[-1]",
        ("tests/live/test_switching.py",),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "after an exchange, a prediction goes through outputs from before it",
        "order = len(decision.sources) - 1",
        "order = decision.entry",
        ("tests/live/test_switching.py",),
    ),
    Mutation(
        "pab_compile/compile/adopting.py",
        "off rounds twice where a cut separates an op of the model",
        "choice.form.uncut() if is_off and not self._is_exact else choice.form",
        "choice.form",
        ("tests/live/test_off.py",),
    ),
    Mutation(
        "pab_compile/plans/plan_file.py",
        "a resampled plan predicts at too high an order",
        "else min(orders))",
        "else max(orders))",
        ("tests/plans/test_plan.py",),
    ),
    # pab_compile/runtime
    Mutation(
        "pab_compile/runtime/clock.py",
        "a table that was rewritten in place is believed",
        "and version_of(timestep) == self.version",
        "and True",
        ("tests/runtime/test_clock.py",),
    ),
    Mutation(
        "pab_compile/runtime/levels.py",
        "an element that stood still and moves now is not noticed",
        "value in (moving, old) for value, old",
        "True for value, old",
        ("tests/runtime/test_levels.py",),
    ),
    Mutation(
        "pab_compile/runtime/levels.py",
        "frames that finish one after the other begin a generation each",
        "if self._is_apart and level.pattern.key is not None and not starts:",
        "if False:",
        ("tests/runtime/test_levels.py",),
    ),
    Mutation(
        "pab_compile/runtime/levels.py",
        "a timestep of many elements is known by those that move alone",
        "torch.where(self.stands, flat == self.sample, flat == first).all()",
        "torch.where(self.stands, True, flat == first).all()",
        ("tests/runtime/test_levels.py",),
    ),
    Mutation(
        "pab_compile/compile/program.py",
        "the elements of the timestep that stand still do not distinguish lanes",
        "replace(call, prompts={**prompts, STANDING: level.pattern.key})",
        "call",
        ("tests/dits/test_per_token.py",),
    ),
    Mutation(
        "pab_compile/compile/program.py",
        "elements at different timesteps reuse",
        "generation.trusted &= level.value is not None",
        "pass",
        ("tests/dits/test_per_token.py",),
    ),
    Mutation(
        "pab_compile/runtime/generation.py",
        "a loop that is over is believed to go on",
        "            return callers.depth(self._loop)",
        "            return 0",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/generation.py",
        "the caches stay when the loop is over",
        "        found.free()",
        '        found.note("over")',
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/generation.py",
        "another run of the sampler may have called the first step",
        "        return callers.runs[0] is self._path[0] or self._holder in callers.runs",
        "        return True",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/continuation.py",
        "timesteps that follow nothing are believed",
        "generation.is_one or here == 0 or is_evenly_spaced(timesteps, call.clock_dtype)",
        "True",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/caller.py",
        "the copies of the callers' variables stay",
        "        frame.f_locals.clear()",
        "        pass",
        ("tests/runtime/test_caller.py",),
    ),
    Mutation(
        "pab_compile/runtime/visible_schedule.py",
        "a rounded timestep is in no schedule",
        "    own = torch.finfo(dtype).eps if dtype.is_floating_point else 0.0",
        "    own = 0.0",
        ("tests/runtime/test_visible_schedule.py",),
    ),
    Mutation(
        "pab_compile/runtime/tracker.py",
        "the same step with other latents continues the generation",
        "elif not lane.latents.is_same_memory(call.latents):",
        "elif False:",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/continuation.py",
        "numbers that are close to a timestep make two calls of a step two steps",
        "return all(is_end or v in going_on for v, is_end in zip(schedules, ends, strict=True))",
        "return True",
        ("tests/runtime/test_continuation.py",),
    ),
    Mutation(
        "pab_compile/runtime/caller.py",
        "a call has as many places as offsets in the bytecode",
        "    if sys.version_info < (3, 11):",
        "    if sys.version_info:",
        ("tests/runtime/test_caller.py",),
    ),
    Mutation(
        "pab_compile/runtime/generation.py",
        "a first step that is not reused is not said",
        "            self.note(_MAY_BE_SINGLE)",
        "            pass",
        ("tests/test_bad_input.py",),
    ),
    Mutation(
        "pab_compile/runtime/lane.py",
        "a second loop in the same function reuses what the first one left",
        "            self.first_reusable_step = step",
        "            pass",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/lane.py",
        "prompts are not compared",
        "return both == either and all(is_same(self.prompts[n], prompts[n]) for n in both)",
        "return True",
        ("tests/runtime/test_continuation.py", "tests/runtime/test_tracker.py"),
    ),
    Mutation(
        "pab_compile/runtime/stepping.py",
        "an input that may be a prompt is learned as stepping",
        "if (prompts := [name for name in names if name not in call.may_step]) != []:",
        "if prompts := []:",
        ("tests/runtime/test_stepping.py",),
    ),
    Mutation(
        "pab_compile/runtime/stepping.py",
        "an input that alone distinguishes two calls of a step is learned as stepping",
        "if len(set(steps)) < len(steps) or step in steps or _have_twins(lanes, ignored):",
        "if False:",
        ("tests/runtime/test_stepping.py",),
    ),
    Mutation(
        "pab_compile/runtime/stepping.py",
        "two calls that only learned inputs distinguish are trusted",
        "is_certain=False",
        "is_certain=True",
        ("tests/runtime/test_stepping.py",),
    ),
    Mutation(
        "pab_compile/runtime/weights.py",
        "writes to weights are not seen",
        "if self.weight() is not weight or version_of(weight) != self.version:",
        "if self.weight() is not weight:",
        ("tests/runtime/test_weights.py",),
    ),
    Mutation(
        "pab_compile/runtime/cache_entry.py",
        "a parabola weighs its last output as a line does",
        "newest = (now - first) * (now - before) / ((last - first) * (last - before))",
        "newest = (now - before) / (last - before)",
        ("tests/runtime/test_cache_entry.py",),
    ),
    # pab_compile/compile
    Mutation(
        "pab_compile/compile/lane_step.py",
        "an output of another step than the plan names is reused",
        "cached.last_step != decision.source",
        "False",
        ("tests/runtime/test_generations.py", "tests/runtime", "tests/compile"),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "the caller gets the cached tensor itself",
        "if op.is_returned:",
        "if False:",
        ("tests/compile/test_returned.py",),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "the end of a stretch is cached in the place of the difference",
        "kept.append(difference(tensor, self._at(start, registers), start.kept))",
        "kept.append(tensor)",
        ("tests/compile/test_reuse_cost.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "what only reused branches need runs",
        "is_needed = not (loads or op.is_demanded)",
        "is_needed = not loads",
        ("tests/compile/test_reuse_cost.py",),
    ),
    Mutation(
        "pab_compile/compile/executor.py",
        "a weight's own functions run a second time",
        "with torchs_own_functions():",
        "if True:",
        ("tests/models/test_real_packages.py",),
    ),
    Mutation(
        "pab_compile/compile/program.py",
        "what was computed once from a stepping input is kept",
        "names = place.generation.lanes.stepping.intersection(self.roles.prompt_inputs)",
        "names: frozenset[str] = frozenset()",
        ("tests/runtime/test_stepping_in_use.py",),
    ),
    Mutation(
        "pab_compile/compile/program.py",
        "a graph without weights is identified by its own tensors",
        "return [calls[0].owner] if calls else [self]",
        "return [torch.empty(0)]",
        ("tests/runtime/test_whose.py",),
    ),
    Mutation(
        "passes/graph/capture.py",
        "a tensor of the tracer may be a constant",
        "if not any(map(is_fake, inputs.tensors(args))):",
        "if False:",
        ("tests/passes/graph/test_constants.py",),
    ),
    # pab_compile/calibration, traffic, options
    Mutation(
        "pab_compile/calibration/drift.py",
        "drift forgets what earlier steps did",
        "errors = steps.cumsum(1).square()",
        "errors = steps.square()",
        ("tests/calibration/test_drift.py",),
    ),
    Mutation(
        "pab_compile/options.py",
        "an unknown option is ignored",
        "        if name not in known:\n            raise OptionError(",
        "        if name not in known:\n            print(",
        ("tests/test_options.py",),
    ),
    Mutation(
        "passes/sites/whole.py",
        "what a graph writes to its inputs is cached with its output",
        "        and node not in values[:num_written]\n",
        "",
        ("tests/passes/sites/test_whole.py", "tests/compile/test_output.py"),
    ),
    Mutation(
        "pab_compile/compile/call_roles.py",
        "text may be taken for latents",
        "is_known = name in stated or sounds_like_text(name) or sounds_like_time(name)",
        "is_known = name in stated or sounds_like_time(name)",
        ("tests/compile/test_call_roles.py",),
    ),
    Mutation(
        "pab_compile/compile/call_roles.py",
        "the first of several timesteps is taken",
        "if len(clocks) != 1 or len(lists) != 1:\n        return None\n    (clock,)",
        "if not clocks or len(lists) != 1:\n        return None\n    (clock, *_)",
        ("tests/compile/test_call_roles.py",),
    ),
    Mutation(
        "pab_compile/compile/untraced.py",
        "a graph that cannot be traced may write to a buffer",
        "if not isinstance(tensor, torch.nn.Parameter) and version_of(tensor) != version:",
        "if False:",
        ("tests/compile/test_output.py",),
    ),
    Mutation(
        "passes/rewrite/merge.py",
        "a sum holds what the step scales anew",
        "        if any(ir.binding(n) == Binding.STEP for n in node.all_input_nodes):\n"
        "            return True\n",
        "",
        ("tests/passes/rewrite/test_residual_sums.py",),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "Python code writes to what a graph keeps of a prompt",
        "return [v if v is None or not op.is_returned else copy_of(v) for v in cached]",
        "return cached",
        ("tests/runtime/test_graphs_without_attention.py",),
    ),
    Mutation(
        "pab_compile/compile/build.py",
        "a prompt that only a graph without latents reads distinguishes no lanes",
        "            shown,\n            prompt_inputs=program.prompt_inputs,",
        "            shown,",
        ("tests/runtime/test_graphs_without_attention.py",),
    ),
    Mutation(
        "pab_compile/compile/analysis.py",
        "what a graph without attention takes for the latents is certain",
        "return known is not None and known[:2] == (program.latents, program.clock)",
        "return True",
        ("tests/runtime/test_broken_forwards.py", "tests/runtime"),
    ),
    # budgets
    Mutation(
        "pab_compile/plans/budget.py",
        "a budget holds for one call of a step, not for all of them",
        "claims[position].num_bytes * num_lanes",
        "claims[position].num_bytes",
        ("tests/plans/test_budget.py", "tests/compile/test_cache_budget.py"),
    ),
    Mutation(
        "pab_compile/runtime/allowance.py",
        "what no longer fits when another call of the step appears stays cached",
        "                    del lane.cache[key]",
        "                    pass",
        ("tests/compile/test_cache_budget.py",),
    ),
    Mutation(
        "pab_compile/compile/lane_step.py",
        "what a budget leaves out is cached",
        "(self._kept is not None and op.site not in self._kept)",
        "False",
        ("tests/compile/test_cache_budget.py",),
    ),
    # kept tensors
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
