"""Faults in what a plan says, its options and its calibration."""

from __future__ import annotations

from .mutation import Mutation

PLANS = (
    Mutation(
        "pab_compile/plans/fingerprint.py",
        "a calibrated plan is for sites in one order",
        "return _hash(sorted(map(_words, sites)), cut)",
        "return _hash(map(_words, sites), cut)",
        ("tests/plans/test_plan.py",),
    ),
    Mutation(
        "pab_compile/plans/plan_file.py",
        "a calibrated plan is used on a model with other sites",
        "if not is_fingerprint_of(made_for, sites, cut):",
        "if False:",
        ("tests/plans/test_plan.py",),
    ),
    Mutation(
        "pab_compile/plans/tuned_model.py",
        "a plan that was tuned on another architecture is used",
        "if self.fingerprint == other.fingerprint:",
        "if True:",
        ("tests/plans/test_tuned_model.py", "tests/compile/test_model_fit.py"),
    ),
    Mutation(
        "pab_compile/compile/model_fit.py",
        "other weights than those of the tuning are not told",
        'return OTHER_WEIGHTS if plan.model.has_other_weights(found) else ""',
        'return ""',
        ("tests/compile/test_model_fit.py",),
    ),
    Mutation(
        "pab_compile/live/handle.py",
        "a handle takes a plan that was tuned on another architecture",
        """        choice = choice_of(plan, self._given)
        self._check_models(choice.plan)
""",
        """        choice = choice_of(plan, self._given)
""",
        ("tests/compile/test_model_fit.py",),
    ),
    Mutation(
        "pab_compile/compile/guidance.py",
        "guidance is left out of a step of three calls",
        "if len(lanes) != 2:",
        "if len(lanes) < 2:",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/guidance.py",
        "a call is answered from the other call of an earlier step",
        """        if self._first.step != step:
            generation.note(_ORDER)
            return False
""",
        "",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/guidance.py",
        "a call is answered from a call with other latents",
        "return is_alike and first.latents.is_same(self._lane.latents.tensor)",
        "return is_alike",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/guidance.py",
        "prompts of two lengths have no differences",
        "return others[0] if len(others) == 1 else None",
        "return None",
        ("tests/compile/test_guidance.py",),
    ),
    Mutation(
        "pab_compile/compile/guidances.py",
        "a first guess of the schedule leaves guidance to be computed",
        "may_turn_out_fit = generation.step == 0",
        "may_turn_out_fit = False",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/batch_guidance.py",
        "half of a batch of several videos is left out",
        "if not torch.equal(one, other) or bool(is_repeated):",
        "if bool(is_repeated):",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/batch_guidance.py",
        "half of a batch of four prompts is left out",
        "if not torch.equal(one, other) or bool(is_repeated):",
        "if not torch.equal(one, other):",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/compile/batch_guidance.py",
        "half of a batch with one prompt is left out",
        "return self._lane.has_two_prompts(len(latents))",
        "return True",
        ("tests/compile/test_guidance_in_doubt.py",),
    ),
    Mutation(
        "pab_compile/tuning/rehearsal.py",
        "a schedule that changes between runs is not noticed",
        "if not is_full and timesteps != known:",
        "if False:",
        ("tests/tuning/test_resume.py",),
    ),
    Mutation(
        "pab_compile/plans/decisions.py",
        "weights are taken for fewer outputs than they are",
        "if order == COMPUTE or (weights is not None and len(computed) < len(weights)):",
        "if order == COMPUTE:",
        ("tests/plans/test_step_plan.py",),
    ),
    Mutation(
        "pab_compile/plans/step_plan.py",
        "weights are used on another schedule",
        "if is_known and not self.misfit(moment.schedule) else COMPUTE",
        "if is_known else COMPUTE",
        ("tests/plans/test_step_plan.py",),
    ),
    Mutation(
        "pab_compile/tuning/together.py",
        "what was computed with other weights is replayed",
        "[each.until(at) for each in here.outputs[: len(fit.targets)]]",
        "here.outputs",
        ("tests/tuning/test_tune.py",),
    ),
    Mutation(
        "pab_compile/tuning/together.py",
        "weights that are worse for prompts without derivatives are taken",
        "if gain > 0 and there.error(others) < here.error(others):",
        "if gain > 0:",
        ("tests/tuning/test_together.py",),
    ),
    Mutation(
        "pab_compile/tuning/half_batch.py",
        "half of a batch runs alone though that gives something else",
        "if self._are_alike.get(key, False):",
        "if key in self._are_alike:",
        ("tests/tuning/test_half_batch.py",),
    ),
    Mutation(
        "pab_compile/plans/plan.py",
        "a branch of several kinds is reused where one of them is",
        "computes = any(moment.step % range_ == 0 for range_ in self._ranges_of(site))",
        "computes = all(moment.step % range_ == 0 for range_ in self._ranges_of(site))",
        ("tests/plans/test_plan.py", "tests/models/test_inner_branches.py"),
    ),
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
        ("tests/plans/test_form.py", "tests/live/test_plan_changes.py"),
    ),
    Mutation(
        "pab_compile/plans/plan_file.py",
        "a resampled plan predicts at too high an order",
        "else min(orders))",
        "else max(orders))",
        ("tests/plans/test_plan.py",),
    ),
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
        "pab_compile/plans/budget.py",
        "a budget holds for one call of a step, not for all of them",
        "claims[position].num_bytes * num_lanes",
        "claims[position].num_bytes",
        ("tests/plans/test_budget.py", "tests/compile/test_cache_budget.py"),
    ),
)
