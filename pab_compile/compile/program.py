"""Programs: a captured graph at run time. ``build`` makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pab_compile import dynamo
from pab_compile.calibration.observe import Probed, current_observer
from pab_compile.calibration.stopwatch import now
from pab_compile.passes.graph import autocast
from pab_compile.passes.graph.join import Part
from pab_compile.passes.graph.origin import source_line
from pab_compile.passes.sites.site import Site
from pab_compile.plans.form import Form
from pab_compile.plans.schedule import Schedule
from pab_compile.ranks.together import Together
from pab_compile.report.explanation import Finding
from pab_compile.runtime.caller import NOBODY, Callers
from pab_compile.runtime.clock import Reading, read_timestep
from pab_compile.runtime.forward import Forward
from pab_compile.runtime.generation import Generation, Place
from pab_compile.runtime.lane import Call
from pab_compile.runtime.last_runs import last_runs
from pab_compile.runtime.level_notes import note_levels
from pab_compile.runtime.levels import STANDING, Level
from pab_compile.runtime.scope import current_scope, stated_step
from pab_compile.runtime.stats import StepRecord
from pab_compile.runtime.stepping import enter_named
from pab_compile.runtime.tracker import Tracker
from pab_compile.runtime.weights import WeightMarks

from .adopting import Adopting
from .executor import Executor
from .input_roles import InputRoles
from .runnable import AtSizes, Restate, written_back
from .shared_calls import run_call

_OTHER_WEIGHTS = (
    "weights or buffers changed during the generation, so what was computed from them before was "
    "not reused"
)
_OTHER_LAYER = (
    "a graph ran with other weights than before{}, so its outputs were not reused: Python code "
    "chose another layer, or the layers in another order"
)


class CompiledProgram:
    """A lowered graph, with the meaning of its inputs.

    Args:
        part: the captured graph; None if it cannot be traced.
        finding: what was found in it.
        executor: runs the pieces.
        roles: what the inputs mean.
        compilation: identifies the ``torch.compile`` call.
        probed: what the graph's last outputs are samples of; None if there are no samples.
        adopting: what takes over an exchanged plan; None if the plan is fixed.

    Attributes:
        roles: as given.
        at_sizes: as for a plain program.
    """

    def __init__(
        self,
        part: Part | None,
        finding: Finding,
        executor: Executor,
        roles: InputRoles,
        compilation: object,
        probed: Probed | None = None,
        adopting: Adopting | None = None,
    ) -> None:
        self.part = part
        self.finding = finding
        branches = [single for site in executor.sites for single in site.singles]
        self.sites: Sequence[Site] = branches or executor.uncut
        self.roles = roles
        self.at_sizes: AtSizes | None = None
        self._executor = executor
        self._compilation = compilation
        self._probed = probed
        self._adopting = adopting
        self._marks: WeightMarks | None = None

    @property
    def together(self) -> Together | None:
        """The ranks that run the program together; None on one rank."""
        return self._executor.together

    def __call__(
        self,
        forward: Forward,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        restate: Restate,
    ) -> Any:
        """Run one call of the model with the inputs of the captured graph."""
        weights = [tensors[position] for position in self.roles.weights]
        identity = self._identity(weights)
        tracker = self._tracker(forward, identity)
        is_first = not forward.is_placed
        place = self._place(forward, tracker, weights)
        executor = self._executor
        if place is not None:
            restated = self._restated(place, restate)
            executor, place = restated or executor, place if restated else None
        if place is not None and place.lane.drop_outdated(
            executor.identity, weights, self._marks_of
        ):
            place.generation.note(_OTHER_WEIGHTS)
        if place is not None and executor.identity not in place.generation.record.late.labels:
            label = None if self.roles.sees_all else (len(forward.visited) + 1, self._where())
            place.generation.record.late.labels[executor.identity] = label
        prompts, positions = self.roles.prompt_inputs, self.roles.weights
        with autocast.as_traced(self.part and self.part.graph_module):
            outputs = run_call(
                executor, tensors, place, self.part, prompts, positions, self._marks_of
            )
        outputs = self._without_samples(outputs, place, identity)
        outputs = written_back(self.part, tensors, outputs)
        if place is not None:
            executor.report(place.generation)
            if is_first:
                last_runs.publish(identity, self._compilation, place.generation, forward)
        finding = self._adopting.finding(place.generation) if place and self._adopting else None
        forward.finish(self, tensors, outputs, finding)
        return outputs

    def _restated(self, place: Place, restate: Restate) -> Executor | None:
        """What runs the graph, now that some inputs may have turned out to be stepping.

        It is the executor that the graph would have if the user had stated them. What another one
        cached may depend on them, so it is freed. The plan that holds at this step may also be of
        another form than when the call began. None if the graph was not compiled for that form.
        """
        names = place.generation.lanes.stepping.intersection(self.roles.prompt_inputs)
        form = self._adopting.form_in(place.generation) if self._adopting else None
        if form != self._form:
            other = restate(names, self.roles.clock, form)
            if isinstance(other, CompiledProgram) and other._form == form:
                return other._executor
            return None
        if not names:
            return self._executor
        if self._probed is not None:  # an observation computes every site anyway
            place.lane.free(self._executor.identity)
            return self._executor
        other = restate(names, self.roles.clock, form)
        executor = other._executor if isinstance(other, CompiledProgram) else self._executor
        if executor.identity != self._executor.identity or executor is self._executor:
            place.lane.free(self._executor.identity)
        return executor

    @property
    def _form(self) -> Form | None:
        return self._adopting.form if self._adopting is not None else None

    def _identity(self, weights: Sequence[torch.Tensor]) -> Sequence[object]:
        """What identifies the model; it lives as long as the model.

        A graph between two breaks may read no weight. Then what was called identifies the model.
        Tensors of the call would be others at the next step.
        """
        if weights:
            return weights
        calls = dynamo.model_calls()
        return [calls[0].owner] if calls else [self]

    def _marks_of(self, weights: Sequence[torch.Tensor]) -> WeightMarks:
        """The marks of the weights. Lanes share them as long as the weights do not change."""
        if self._marks is None or not self._marks.are_unchanged(weights):
            self._marks = WeightMarks(weights)
        return self._marks

    def _tracker(self, forward: Forward, identity: Sequence[object]) -> Tracker:
        """The tracker of the forward, which its first graph with sites looks up."""
        if forward.tracker is None:
            forward.tracker = current_scope().tracker(identity, self._compilation)
        roles = self.roles
        forward.tracker.prompt_inputs |= dict.fromkeys(roles.prompt_inputs)
        forward.tracker.fixed_inputs.update({*roles.prompt_inputs}.difference(roles.may_step))
        return forward.tracker

    def _place(
        self, forward: Forward, tracker: Tracker, weights: Sequence[torch.Tensor]
    ) -> Place | None:
        """Where this call belongs; None computes everything."""
        if forward.is_placed:
            return self._checked_place(forward, tracker, weights)
        if self.roles.by_name and not self._has_roles(forward):
            return None
        forward.is_placed = True
        if self.roles.by_name:
            forward.placed_as = (self.roles.latents, self.roles.clock)
        reading = self._read(forward, tracker)
        level = reading.level
        if level is not None and level.value is None:
            tracker = self._tracker_apart(forward, tracker, weights, level)
        call, before = self._call(forward, tracker, reading), tracker.generation
        generation, lane = tracker.place(call)
        call.callers.release()
        if self._adopting is not None:
            self._adopting.adopt(generation)
        if call.lane is not None and (note := enter_named(generation.lanes, lane, call)):
            generation.note(note)
        if level is not None:
            generation.trusted &= level.value is not None
            goes_on = generation is before and generation.step > 0
            note_levels(level, call.latents, generation.record, goes_on)
        forward.place = Place(generation, lane, StepRecord(generation.step, started=now()))
        for reason in filter(None, (ran.reason for ran in forward.findings)):
            generation.note(reason)
        return forward.place

    def _has_roles(self, forward: Forward) -> bool:
        """Whether this call passes the latents and the timestep, which the graph need not read."""
        return {self.roles.latents, self.roles.clock} <= forward.inputs.keys()

    def _checked_place(
        self, forward: Forward, tracker: Tracker, weights: Sequence[torch.Tensor]
    ) -> Place | None:
        """The place that an earlier graph of the forward found, if this graph may use it."""
        place = forward.place
        if forward.placed_as not in (None, (self.roles.latents, self.roles.clock)):
            return None
        if place is None or place.generation.closed or place.generation is not tracker.generation:
            return None
        if not place.lane.has_weights(self._executor.identity, weights, self._marks_of):
            where = self._where()
            place.generation.note(_OTHER_LAYER.format(f" ({where})" if where else ""))
            return None
        stepping = place.generation.lanes.stepping
        names = [name for name in self.roles.prompt_inputs if name not in stepping]
        if not place.lane.carries(forward.inputs, names):
            return None
        return place

    def _where(self) -> str:
        """Where the graph begins in the code; ``""`` if that is unknown."""
        nodes = self.part.graph_module.graph.nodes if self.part else ()
        line = next(filter(None, map(source_line, nodes)), "")
        return line.partition(" ")[0]

    def _read(self, forward: Forward, tracker: Tracker) -> Reading:
        """What the timestep says. It is not read if the user stated the step."""
        if stated_step() is not None:
            return Reading(None)
        clock, latents = (forward.inputs[n] for n in (self.roles.clock, self.roles.latents))
        return read_timestep(clock, tracker.tables, tracker.levels, latents.shape[0])

    def _tracker_apart(
        self, forward: Forward, tracker: Tracker, weights: Sequence[torch.Tensor], level: Level
    ) -> Tracker:
        """The tracker of calls whose elements are at different timesteps.

        They have no step in the running generation. If it began with them, it ends.
        """
        running = tracker.generation
        if running is not None and running.table is None and running.timestep is not None:
            running.free()
        apart = current_scope().tracker(self._identity(weights), (self._compilation, "apart"))
        apart.prompt_inputs |= tracker.prompt_inputs
        if level.is_start:
            apart.drop()
        forward.tracker = apart
        return apart

    def _call(self, forward: Forward, tracker: Tracker, reading: Reading) -> Call:
        """The forward as the tracker sees it."""
        roles, stated = self.roles, stated_step()
        latents, prompts = forward.inputs[roles.latents], roles.prompts_in(forward.inputs)
        known = tuple(dict.fromkeys((*roles.prompt_inputs, *tracker.prompt_inputs)))
        names = None if roles.is_blind else (*known, STANDING)
        may_step = frozenset(known) - tracker.fixed_inputs
        call = Call(
            reading,
            latents,
            prompts,
            names,
            roles.is_blind,
            may_step=may_step,
            clock_dtype=forward.inputs[roles.clock].dtype,
            callers=Callers(dynamo.callers()),
            rows=self._adopting.rows() if self._adopting else (),
        )
        if stated is not None:
            schedule = Schedule(stated.num_steps)
            return replace(call, lane=stated.lane, index=stated.index, schedule=schedule)
        level = reading.level
        if level is not None and level.value is None:
            return replace(call, index=_step_apart(level, tracker.generation), callers=NOBODY)
        if level is not None and level.pattern.key is not None:
            return replace(call, prompts={**prompts, STANDING: level.pattern.key})
        return call

    def _without_samples(
        self, outputs: Sequence[Any], place: Place | None, identity: Sequence[object]
    ) -> Sequence[Any]:
        """The outputs of the graph; the observer gets the samples behind them."""
        if self._probed is None:
            return outputs
        number = self._probed.num_probes
        outputs, samples = outputs[:-number], outputs[-number:]
        if (observer := current_observer()) is not None:
            observer.record(self._probed, place, identity, samples)
        return outputs


def _step_apart(level: Level, generation: Generation | None) -> int:
    """The step of a call whose elements are at different timesteps: counted, since none is read."""
    if generation is None or generation.closed:
        return 0
    if not level.is_next:
        return generation.step
    return 0 if generation.is_last_step else generation.step + 1
