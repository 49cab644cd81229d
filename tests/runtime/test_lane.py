"""Lanes: any number that the user names, few that are found by their prompts."""

from __future__ import annotations

import torch

from pab_compile.runtime.cache_entry import CacheEntry
from pab_compile.runtime.clock import Reading
from pab_compile.runtime.lane import Call, Lanes


def call(name: str | None = None, prompt: int = 0) -> Call:
    prompts = {"prompt": torch.full((2,), float(prompt))}
    return Call(Reading(None), torch.zeros(2), prompts, ("prompt",), lane=name, index=0)


def test_every_named_lane_stays() -> None:
    lanes = Lanes()
    calls = [call(f"window {number}") for number in range(20)]
    opened = [lanes.open(each, 0) for each in calls]
    assert not any(is_full for _, is_full in opened)
    assert [lanes.find(each, 1) for each in calls] == [lane for lane, _ in opened]


def test_the_ninth_lane_without_a_name_takes_the_place_of_the_oldest_and_says_so() -> None:
    lanes = Lanes()
    named, _ = lanes.open(call("named"), 0)
    opened = [lanes.open(call(prompt=number), 0) for number in range(8)]
    assert not any(is_full for _, is_full in opened)
    oldest = opened[0][0]
    oldest.cache[("graph", 0)] = CacheEntry()
    _, is_full = lanes.open(call(prompt=8), 0)
    assert is_full and not oldest.cache
    assert lanes.find(call(prompt=0), 1) is None
    assert lanes.find(call(prompt=1), 1) is opened[1][0]
    assert lanes.find(call("named"), 1) is named
