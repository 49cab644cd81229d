"""Caches in the memory of the host: order of the copies, and values, with transfers that are late.

No CUDA device is needed: ``Late`` stands for the copies of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import pab_compile
from helpers.latte import Loop, calls_of, compiled_pab, ddim_timesteps, tiny_latte
from pab_compile import OptionError
from pab_compile.options import parse_options
from pab_compile.report.draw import format_bytes
from pab_compile.runtime.transfers import Parcel, transfers_of

NUM_STEPS = 6
ENTRY = 4096  # bytes of what a site caches
RANGES = {"spatial": 2, "temporal": 3, "cross": 4, "mlp": 2}
WHOLE = {"ranges": RANGES, "window": (0.0, 1.0)}
CPU = torch.device("cpu")


class Late:
    """Copies that are made as late as a device may make them.

    A tensor is read for the host only when it comes back, so it must not have changed until then.
    What comes back is no number until it was waited for.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []

    def send(self, tensor: torch.Tensor) -> Parcel:
        number = sum(word == "send" for word, _ in self.log)
        self.log.append(("send", number))
        return LateParcel(self, tensor, number)

    def numbers(self, word: str) -> list[int]:
        return [number for found, number in self.log if found == word]


class LateParcel:
    def __init__(self, transfers: Late, source: torch.Tensor, number: int) -> None:
        self._transfers = transfers
        self._source = source
        self._number = number
        self.coming: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return self._source.numel() * self._source.element_size()

    def request(self) -> None:
        if self.coming is None:
            self._transfers.log.append(("request", self._number))
            self.coming = torch.full_like(self._source, torch.nan)

    def receive(self) -> torch.Tensor:
        self.request()
        self._transfers.log.append(("receive", self._number))
        tensor, self.coming = self.coming, None
        assert tensor is not None
        return tensor.copy_(self._source)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Late:
    found = Late()
    monkeypatch.setattr("pab_compile.compile.executor.transfers_of", lambda device: found)
    return found


@pytest.fixture(scope="module")
def model() -> LatteTransformer3DModel:
    return tiny_latte(depth=1)


def run(model: Callable[..., Any], guidance: Any = "none") -> torch.Tensor:
    return Loop(calls_of(model), ddim_timesteps(NUM_STEPS), guidance=guidance).run()


OPTIONS: dict[str, dict[str, Any]] = {
    "sites": WHOLE,
    "lines": {**WHOLE, "predict": 1},
    "sums": {"ranges": "linear2"},
    "output": {"ranges": "linear2", "cut": "output"},
    "float8": {**WHOLE, "cache_dtype": "float8_e4m3"},
}


@pytest.mark.sample("sites-two calls", "sums-none", "float8-none")
@pytest.mark.parametrize("guidance", ["none", "two calls"])
@pytest.mark.parametrize("name", OPTIONS)
def test_it_equals_a_generation_that_keeps_everything_on_the_device(
    model: LatteTransformer3DModel, late: Late, name: str, guidance: Any
) -> None:
    plain: Any = compiled_pab(model, **OPTIONS[name])
    sent: Any = compiled_pab(model, **OPTIONS[name], cache_offload=True)
    expected, kept = run(plain, guidance), pab_compile.stats(plain)
    assert late.log == []
    assert torch.equal(run(sent, guidance), expected)
    stats = pab_compile.stats(sent)
    assert stats.reused == kept.reused
    assert (stats.peak_cache_bytes, stats.peak_host_bytes) == (0, kept.peak_cache_bytes)
    assert f"{format_bytes(kept.peak_cache_bytes)} on the host" in str(stats)
    assert {*late.numbers("receive")} <= {*late.numbers("send")}
    assert len(late.numbers("receive")) == len(late.numbers("request")) > 0


def test_two_sites_are_read_ahead(model: LatteTransformer3DModel, late: Late) -> None:
    def plan(site: Any, step: int, *_: Any) -> int | None:
        return 0 if step == 1 else None

    run(compiled_pab(model, plan=plan, cache_offload=True))
    assert late.log[:5] == [("send", number) for number in range(5)]
    assert late.log[5:] == [
        ("request", 0),
        ("request", 1),
        ("receive", 0),
        ("request", 2),
        ("receive", 1),
        ("request", 3),
        ("receive", 2),
        ("request", 4),
        ("receive", 3),
        ("receive", 4),
    ]


@pytest.mark.long
def test_what_nothing_reads_is_not_brought_back(model: LatteTransformer3DModel, late: Late) -> None:
    """At a step that reuses the whole output of the last block, nothing before it is read."""
    run(compiled_pab(model, ranges="linear2", coalesce=False, cache_offload=True))
    whole = len(late.numbers("request"))
    late.log.clear()
    run(compiled_pab(model, ranges="linear2", coalesce=True, cache_offload=True))
    assert 0 < len(late.numbers("request")) < whole


def test_only_what_a_budget_does_not_hold_is_sent(
    model: LatteTransformer3DModel, late: Late
) -> None:
    expected = run(compiled_pab(model, **WHOLE), "two calls")
    options = {**WHOLE, "cache_budget": 6 * ENTRY, "cache_offload": True}
    limited: Any = compiled_pab(model, **options)
    assert torch.equal(run(limited, "two calls"), expected)
    stats = pab_compile.stats(limited)
    assert (stats.peak_cache_bytes, stats.peak_host_bytes) == (6 * ENTRY, 4 * ENTRY)
    note = "holds 3 of 5 sites for 2 call(s) per step; 2 go to the memory of the host"
    assert any(note in each for each in stats.notes)


def test_what_the_caller_may_write_to_is_copied_first(
    model: LatteTransformer3DModel, late: Late
) -> None:
    def spoilt() -> Iterator[torch.Tensor]:
        call = calls_of(compiled_pab(model, ranges="linear2", cut="output", cache_offload=True))

        def written(*given: Any) -> torch.Tensor:
            output = call(*given)
            found = output.clone()
            output.zero_()
            return found

        yield Loop(written, ddim_timesteps(NUM_STEPS)).run()

    expected = run(compiled_pab(model, ranges="linear2", cut="output"))
    assert torch.equal(next(spoilt()), expected)
    assert late.numbers("receive")


@pytest.mark.long
def test_a_cpu_has_no_other_memory(model: LatteTransformer3DModel) -> None:
    assert transfers_of(CPU) is None
    plain, sent = (compiled_pab(model, **WHOLE, **o) for o in ({}, {"cache_offload": True}))
    assert torch.equal(run(sent), run(plain))
    assert pab_compile.stats(sent).peak_host_bytes == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [1, "cpu", None])
def test_it_is_true_or_false(given: Any) -> None:
    with pytest.raises(OptionError, match="cache_offload is True or False"):
        parse_options({"cache_offload": given})
