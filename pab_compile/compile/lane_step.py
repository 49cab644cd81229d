"""Lane step: one step of one lane. It applies the decisions to cache entries and preludes."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from pab_compile.plans.decisions import Decision
from pab_compile.report.timeline import (
    COMPILE,
    COMPUTED,
    GLUE,
    MIXED,
    PREDICTED,
    REUSE,
    REUSED,
    SITES,
)
from pab_compile.runtime.cache_entry import CacheEntry, Tensors, copy_of, difference, end_of
from pab_compile.runtime.generation import Place
from pab_compile.runtime.kept import Held, Size, sent
from pab_compile.runtime.transfers import Transfers
from pab_compile.runtime.watched import Watched

from .guidances import guidance_of
from .op import Op, Start

if TYPE_CHECKING:
    from .executor import Executor

_AHEAD = 2  # sites whose cache entries are read from the host before they are needed
_MISSING = (
    "some steps computed although the plan combines earlier outputs there, since not all of them "
    "were cached: the first generation of a size is compiled while it runs"
)


class LaneStep:
    """One step of one lane of a graph.

    Attributes:
        reused: per site, whether it is reused.
    """

    def __init__(
        self, executor: Executor, place: Place, inputs: Sequence[torch.Tensor], device: torch.device
    ) -> None:
        self._executor = executor
        self._generation = generation = place.generation
        self._lane = place.lane
        self._record = place.record
        self._kept = executor.cached_sites(generation, device)
        self._transfers = executor.transfers(device)
        self._decisions = executor.decisions_of(generation).at(generation.step, generation.timestep)
        self._cached = [
            self._lane.cache.get((executor.identity, site)) for site in range(len(executor.sites))
        ]
        self._guidance = guidance_of(executor, place, inputs, executor.is_limited(self._kept))
        self._is_answered = tuple(map(self._may_answer, range(len(executor.sites))))
        self.reused = tuple(
            is_answered or self._may_reuse(decision, cached)
            for is_answered, decision, cached in zip(
                self._is_answered, self._decisions, self._cached, strict=True
            )
        )
        first_run = self._lane.first_runs.setdefault(executor.identity, generation.step)
        if any(self._is_late(site, first_run) for site in range(len(executor.sites))):
            generation.record.late.add(executor.identity, first_run)
        self._timestep = generation.timestep_now
        self._in_timesteps = executor.in_timesteps_of(generation)
        self._held = self._held_by_lanes()
        self._ahead: deque[int] = deque()
        self._start = self._last = time.perf_counter()
        self._waited = executor.compiler.waited_seconds
        self._repeated: set[int] = set()  # sites with one output that a prediction may use
        self._holds_more = False  # values for the whole generation, which earlier steps did not

    def spend(self, op: Op) -> None:
        """Count the time since the last op as that of this op, by the host's clock."""
        now, waited = time.perf_counter(), self._executor.compiler.waited_seconds
        part = GLUE if op.site < 0 else REUSE if self.reused[op.site] else SITES
        spent, took = self._record.spent, now - self._last
        compiling = min(waited - self._waited, took)  # another thread may have waited too
        spent[part] += took - compiling
        if compiling:
            spent[COMPILE] += compiling
        self._last, self._waited = now, waited

    def exchange(self, op: Op) -> None:
        """Note what this rank exchanges with others, since a piece runs."""
        self._record.exchanged.extend(op.exchanged)

    def _computed(self, op: Op, registers: list[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """What a piece yields."""
        self.exchange(op)
        return op.function(*[registers[i] for i in op.inputs])

    def visit_branch(
        self, op: Op, registers: list[torch.Tensor | None], is_needed: bool
    ) -> Sequence[torch.Tensor]:
        """Load the site's cache entry if the decision says so, else compute and store.

        Args:
            op: the call of the branch.
            registers: all values so far.
            is_needed: whether a value of the branch is needed. If none is, nothing is loaded.
        """
        decision = self._decisions[op.site]
        cached = self._cached[op.site]
        if self._is_answered[op.site]:
            return self._answer(op, registers, is_needed)
        if self.reused[op.site] and cached is not None:
            loaded: Sequence[torch.Tensor] = ()
            if decision.entry > 0 and decision.weights is None:
                self._note_missing(op.site, cached, decision)
            if is_needed:
                loaded = self._load(op, cached, decision, registers)
                self._request_next()
            if decision.history is not None:
                self._shorten(op, decision.history)
            return loaded
        length = None if decision.reuses else self._length_to_keep(op, decision)
        self._make_room(op, length)
        results = self._computed(op, registers)
        if length:
            self._store(op, length, self._kept_of(op, tuple(results), registers))
        if self._guidance is not None and not decision.reuses:
            self._guidance.learn(op.site)
            self._held = self._held_by_lanes()
            self._generation.record.hold(self._held)
        return results

    def _may_answer(self, site: int) -> bool:
        """Whether guidance answers what a site would compute."""
        is_asked = self._guidance is not None and not self._decisions[site].reuses
        return is_asked and self._guidance.answers(site)  # type: ignore[union-attr]

    def _answer(
        self, op: Op, registers: list[torch.Tensor | None], is_needed: bool
    ) -> Sequence[torch.Tensor]:
        """The outputs of a site that guidance answers. They are cached as computed ones are."""
        assert self._guidance is not None
        length = self._length_to_keep(op, self._decisions[op.site])
        self._make_room(op, length)
        answer = self._guidance.answer(op.site)
        if length:
            kept = [self._executor.kept(x, is_new=True, is_narrow=self._is_narrow) for x in answer]
            self._store(op, length, kept)
        return self._ends_of(op, answer, registers) if is_needed else ()

    def _held_by_lanes(self) -> Size:
        return functools.reduce(
            Size.plus, (lane.cache_size() for lane in self._generation.lanes), Size()
        )

    def visit_prelude(
        self, op: Op, registers: list[torch.Tensor | None]
    ) -> Sequence[torch.Tensor | None]:
        """Compute what is the same at every step once per lane.

        Python code may write to what the graph returns, so the lane keeps a copy.
        """
        key = (self._executor.identity, op.prelude)
        cached = self._lane.prelude.get(key)
        if cached is not None:
            return [v if v is None or not op.is_returned else copy_of(v) for v in cached]
        computed = self._computed(op, registers)
        self._holds_more = True
        self._lane.prelude[key] = tuple(
            self._executor.cacheable(value, op.is_returned) if position in op.cached else None
            for position, value in enumerate(computed)
        )
        return computed

    def visit_watched(self, op: Op, registers: list[torch.Tensor | None]) -> Sequence[torch.Tensor]:
        """Compute what depends on tensors that Python made, unless they are as before.

        Python code may write to what the graph returns, so the lane keeps a copy.
        """
        watched = self._lane.watched.setdefault((self._executor.identity, op.watched), Watched())
        read = [tensor for i in op.made if (tensor := registers[i]) is not None]
        if (known := watched.values(read)) is not None:
            return list(map(copy_of, known)) if op.is_returned else known
        computed = self._computed(op, registers)
        self._holds_more = True
        watched.keep(read, [self._executor.cacheable(x, op.is_returned) for x in computed])
        return computed

    def finish(self) -> None:
        """Complete the record of this step. After the last step, free the graph's cache."""
        generation, record = self._generation, self._record
        record.computed.update(site.kind for site in self._executor.uncut)
        for number, kinds in enumerate(self._executor.kinds):
            runs = not self.reused[number] or self._is_half(number)
            counter = record.computed if runs else record.reused
            counter.update(kinds)
        record.states.append((self._executor.rows, self._states()))
        record.size = record.size.most(self._held)
        record.seconds += time.perf_counter() - self._start
        if self._holds_more:
            generation.record.measure(generation.lanes)
        generation.finish_call(self._lane, record, self._executor.identity)

    def _states(self) -> str:
        """One letter per row of the executor (``Call.states``)."""
        letters = map(self._letter, range(len(self._executor.sites)))
        rows = zip(letters, self._executor.sites, strict=True)
        cut = "".join(letter * len(site.singles) for letter, site in rows)
        return COMPUTED * len(self._executor.uncut) + cut

    def _letter(self, site: int) -> str:
        decision = self._decisions[site]
        if not self.reused[site]:
            return COMPUTED
        if self._is_half(site):
            return MIXED
        is_extrapolated = decision.entry > 0 and site not in self._repeated
        is_predicted = is_extrapolated or decision.weights is not None
        return PREDICTED if is_predicted or self._is_answered[site] else REUSED

    def _is_half(self, site: int) -> bool:
        """Whether one half of the batch computed."""
        guidance = self._guidance
        return self._is_answered[site] and guidance is not None and guidance.is_half

    def _may_reuse(self, decision: Decision, cached: CacheEntry | None) -> bool:
        if not decision.reuses or not self._generation.trusted:
            return False
        if cached is None or cached.last_step is None or cached.last_step != decision.source:
            return False
        # Another plan may have cached other outputs. The first call of a step may have freed some.
        is_unsure = self._generation.is_switched or self._lane.is_repeated
        if (is_unsure or decision.weights is not None) and not self._has_all(decision, cached):
            if decision.weights is not None and self._generation.may_reuse_from(
                self._lane, decision.sources[0]
            ):
                self._generation.note(_MISSING)
            return False
        return self._generation.may_reuse_from(self._lane, cached.last_step)

    def _is_late(self, site: int, first_run: int) -> bool:
        """Whether a planned reuse is missed only because the graph did not run before.

        Other causes have notes of their own.
        """
        decision, generation = self._decisions[site], self._generation
        source, is_missed = decision.source, decision.reuses and not self.reused[site]
        if not is_missed or source is None or self._cached[site] is not None:
            return False
        is_kept = self._kept is None or site in self._kept or self._transfers is not None
        is_told = generation.is_switched or bool(generation.lanes.stepping)
        if not generation.trusted or is_told or not is_kept:
            return False
        ran_before = max(self._lane.first_step, generation.first_reusable(self._lane)) <= source
        return ran_before and source < first_run

    def _has_all(self, decision: Decision, cached: CacheEntry) -> bool:
        """Whether the newest outputs are those that the plan names, whatever plan stored them."""
        sources = decision.sources
        is_sure = sources[0] >= self._generation.first_reusable(self._lane)
        return is_sure and cached.steps[-len(sources) :] == sources

    def _load(
        self,
        op: Op,
        cached: CacheEntry,
        decision: Decision,
        registers: list[torch.Tensor | None],
    ) -> Sequence[torch.Tensor]:
        first = self._generation.first_reusable(self._lane)
        step, order = self._generation.step, self._order(decision)
        timestep = self._timestep if self._in_timesteps else None
        loaded = cached.load(step, order, timestep, first, decision.weights)
        return self._ends_of(op, loaded, registers)

    def _ends_of(
        self, op: Op, kept: Tensors, registers: list[torch.Tensor | None]
    ) -> Sequence[torch.Tensor]:
        """The outputs of a site, from what is kept of them."""
        outputs = list(kept)
        for number, tensor in enumerate(outputs):
            start = op.starts[number] if op.starts else None
            if start is not None:
                outputs[number] = end_of(self._at(start, registers), tensor, start.end)
            elif op.is_returned:
                outputs[number] = copy_of(tensor)
        return outputs

    def _note_missing(self, site: int, cached: CacheEntry, decision: Decision) -> None:
        """Note which outputs a prediction would use, and why it may not use all of them."""
        first = self._generation.first_reusable(self._lane)
        used = cached.steps[-self._order(decision) - 1 :]
        if used[0] < first:
            self._generation.may_reuse_from(self._lane, used[0])  # notes why not
        if sum(step >= first for step in used) < 2:
            self._repeated.add(site)

    def _order(self, decision: Decision) -> int:
        """The order of a reuse."""
        if self._generation.is_switched:  # the other plan may have cached more outputs
            return len(decision.sources) - 1
        return decision.entry

    def read_ahead(self, sites: Iterable[int]) -> None:
        """Begin to read from the host what the first branches of the step load.

        Args:
            sites: the sites that are loaded at this step, in order.
        """
        if self._transfers is not None:
            self._ahead.extend(sites)
            for _ in range(_AHEAD):
                self._request_next()

    def _request_next(self) -> None:
        if self._ahead:
            site = self._ahead.popleft()
            cached, first = self._cached[site], self._generation.first_reusable(self._lane)
            if cached is not None:
                cached.request(self._order(self._decisions[site]), first)

    def _transfers_for(self, op: Op) -> Transfers | None:
        """What sends the outputs of a site to the host; None if they stay on the device."""
        is_on_device = self._kept is not None and op.site in self._kept
        return None if is_on_device else self._transfers

    @contextmanager
    def _counted(self, cached: CacheEntry) -> Iterator[None]:
        """Count what a cache entry holds anew, after a change of it."""
        self._held = self._held.plus(cached.size(), -1)
        yield
        self._held = self._held.plus(cached.size())

    def _length_to_keep(self, op: Op, decision: Decision) -> int | None:
        """How many outputs stay if the site computes now; None if its cache stays as it is."""
        if not self._generation.trusted:
            return None
        if self._kept is not None and op.site not in self._kept and self._transfers is None:
            return 0
        if decision.history is not None:
            return decision.history
        return self._executor.history_of(op.site, self._generation)

    @property
    def _is_narrow(self) -> bool:
        return self._generation.allowance.is_narrow

    def _kept_of(
        self, op: Op, outputs: Tensors, registers: list[torch.Tensor | None]
    ) -> list[Held]:
        """What is kept of the outputs of a site."""
        kept: list[Held] = []
        for number, tensor in enumerate(outputs):
            start = op.starts[number] if op.starts else None
            if start is None:
                kept.append(self._executor.kept(tensor, op.is_returned, is_narrow=self._is_narrow))
            else:
                change = difference(tensor, self._at(start, registers), start.kept)
                kept.append(self._executor.kept(change, is_new=True, is_narrow=self._is_narrow))
        return kept

    def _store(self, op: Op, length: int, kept: Sequence[Held]) -> None:
        """Cache what is kept of the outputs of a site."""
        key = (self._executor.identity, op.site)
        cached = self._lane.cache.setdefault(key, CacheEntry())
        if (transfers := self._transfers_for(op)) is not None:
            kept = [sent(held, transfers) for held in kept]
        with self._counted(cached):
            cached.store(self._generation.step, tuple(kept), length, self._timestep)
        self._generation.record.hold(self._held)
        self._record.size = self._record.size.most(self._held)

    def _at(self, start: Start, registers: list[torch.Tensor | None]) -> torch.Tensor:
        value = registers[start.register]
        assert value is not None, "a start was freed or not computed"
        return value

    def _make_room(self, op: Op, length: int | None) -> None:
        """Keep only the newest outputs of earlier steps: the user may repeat a call of a step."""
        if length is not None:
            self._shorten(op, max(length - 1, 0), before=self._generation.step)

    def _shorten(self, op: Op, length: int, before: int | None = None) -> None:
        """Keep only the newest outputs of a site, and none from a step on if one is given."""
        key = (self._executor.identity, op.site)
        cached = self._lane.cache.get(key)
        if cached is None:
            return
        with self._counted(cached):
            if before is not None:
                cached.drop_from(before)
            cached.drop_older_than(length)
        if length == 0:
            del self._lane.cache[key]
