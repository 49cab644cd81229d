"""Callers: runs of functions are known, and nothing of theirs is kept."""

from __future__ import annotations

import dis
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from pab_compile.runtime.caller import Callers, Run, is_suspended, position_in


class Thing:
    """Something that can be referred to weakly."""


def callers() -> Callers:
    """The function that calls this one, and its caller."""
    frame = sys._getframe(1)
    assert frame.f_back is not None
    return Callers([frame, frame.f_back])


def twice() -> tuple[Run, Run]:
    return callers().runs[0], callers().runs[0]


def wave() -> Iterator[Run]:
    while True:
        yield callers().runs[0]


def test_a_run_is_the_same_at_every_call_and_another_one_the_next_time() -> None:
    one, same = twice()
    other, _ = twice()
    assert one is same
    assert one is not other
    assert one() is None, "the function has returned"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a call has one offset")
def test_a_call_has_one_position_whichever_of_its_offsets_is_seen() -> None:
    code = twice.__code__
    calls = [each.offset for each in dis.get_instructions(code) if each.opname == "CALL"]
    behind = [position_in(code, offset + 2) for offset in calls]
    assert behind == [position_in(code, offset) for offset in calls]
    assert len(set(behind)) == 2


def test_the_caller_is_still_running() -> None:
    here = callers()
    assert here.runs[0]() is not None
    assert here.depth(here.runs[1]) == 1
    assert here.depth(twice()[0]) is None
    assert here.depth(None) is None


def test_the_innermost_function_of_two_calls_is_found() -> None:
    here, there = callers(), (lambda: callers())()
    assert there.innermost_in(here.runs) is here.runs[0]
    assert here.innermost_in([]) is None


def test_only_a_generator_is_suspended_and_only_as_long_as_it_lives() -> None:
    steps = wave()
    run = next(steps)
    assert next(steps) is run
    assert is_suspended(run)
    assert not is_suspended(callers().runs[0])
    del steps
    assert not is_suspended(run)


def test_reading_the_variables_keeps_none_of_them_alive() -> None:
    thing: Any = Thing()
    gone = weakref.ref(thing)
    found = callers()
    names = [set(variables) for _, variables in found.variables()]
    assert {"thing", "gone"} <= names[0]
    thing = None
    assert gone() is None
    found.release()
    assert list(found.variables()) == []
    assert len(found.runs) == 2


def test_a_function_that_holds_its_own_variables_keeps_them() -> None:
    thing = Thing()
    mine = locals()
    list(callers().variables())
    assert mine["thing"] is thing


def test_an_error_that_holds_a_frame_does_not_make_it_run() -> None:
    def broken() -> None:
        seen.append(callers().runs[0])
        raise ValueError

    seen: list[Run] = []
    try:
        broken()
    except ValueError as error:
        assert seen[0]() is not None, error
        assert callers().depth(seen[0]) is None
    assert seen[0]() is None


def test_a_debugger_sees_every_line_all_the_same() -> None:
    lines: list[str] = []

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code is twice.__code__:
            lines.append(event)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    one, same = twice()
    sys.settrace(before)
    assert one is same
    assert lines == ["call", "line", "return"]
