"""The page of many devices: plans that compute as much as the published one and send less."""

from __future__ import annotations

import pytest

from benchmarks import devices


@pytest.mark.long
@pytest.mark.slow
def test_plans_of_fewer_bytes_than_the_published_one_compute_as_many_sites() -> None:
    lines = list(devices.published())
    page = devices.RESULTS.read_text(encoding="utf-8")
    assert all(line in page for line in lines)
    cells = [line.strip("| ").split(" | ") for line in lines[2:]]
    sent = {name: float(gigabytes) for name, _, gigabytes in cells}
    assert (sent["no reuse"], sent["PAB246 as published"]) == (23.079, 13.078)
    others = [name for name in sent if "spatial" in name]
    assert min(sent[name] for name in others) == 10.001 < 11.5
