"""The page about a generation: what it holds, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import pab_compile
from helpers import browser
from helpers.captured import SmallDiT
from pab_compile.report.explanation import Explanation, SiteReport
from pab_compile.report.run_stats import RunStats, saved_operations
from pab_compile.report.timeline import Call, Row, Timeline

MIB = 2**20
VOID = {"meta", "input", "br", "path", "rect", "link"}
STRIPS = {"spatial": "CC-C-C", "temporal": "CCpppC", "mlp": "CCCCCC"}


def made(num_blocks: int) -> RunStats:
    """Statistics of a model with three sites per block."""
    rows, reports = [], []
    for block in range(num_blocks):
        for kind in STRIPS:
            name = f"blocks.{block}.{kind}<x>"
            rows.append(Row(name, kind))
            kept = 0 if kind == "mlp" else MIB
            why = "seen & found" if kept else "the plan computes it at every step"
            axes = ("h", "w")
            reports.append(
                SiteReport(name, kind, "sdpa", name, axes, axes, 2 if kept else 1, kept, 100, why)
            )
    calls = [
        Call(step, 0, "".join(STRIPS[row.kind][step] for row in rows), MIB * step, 0, 0.1)
        for step in range(6)
    ]
    timeline = Timeline(tuple(rows), tuple(calls), dict.fromkeys(range(5), 0.25))
    total = sum(site.cache_bytes for site in reports)
    flops = 2 * 100 * len(reports)
    found = Explanation(tuple(reports), 9, flops, "t", "x", ("a note",), {}, total, 10)
    computed = {kind: num_blocks * strip.count("C") for kind, strip in STRIPS.items()}
    reused = {kind: num_blocks * (6 - strip.count("C")) for kind, strip in STRIPS.items()}
    return RunStats(
        steps=6,
        calls=6,
        lanes=1,
        kinds=tuple(STRIPS),
        computed=computed,
        reused=reused,
        computed_steps={kind: strip.count("C") for kind, strip in STRIPS.items()},
        patterns=("CCC",) * 6,
        peak_cache_bytes=5 * MIB,
        peak_host_bytes=0,
        held_bytes=0,
        num_pieces=3,
        compile_seconds=1.0,
        seconds_per_step=0.25,
        notes=("why </script> not",),
        timeline=timeline,
        explanation=found,
        options={"ranges": "'linear3'"},
    )


class Tags(HTMLParser):
    """Checks that all tags are closed, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_page_is_closed_loads_nothing_and_holds_the_numbers() -> None:
    page = made(2).to_html(title="A <model>", speed=2.5, quality="31.3 dB")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.loaded == []
    assert not re.search(r"url\((?!#)|@import|fetch\(", page)
    for words in ("A &lt;model&gt;", "2.50x", "31.3 dB", "3 of 6", "5.0 MiB", "linear3"):
        assert words in page, words
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(data)["timeline"]["calls"][3]["states"] == "CpCCpC"
    assert page.count('data-letters="CCpppC"') == 3  # a fold of two, and the two


def test_equal_rows_are_folded_so_a_thousand_sites_stay_a_small_page() -> None:
    page = made(340).to_html()
    assert page.count('<details class="group">') == 3
    assert page.count("linear-gradient") == 3  # one look per strip, not per site
    assert len(page) < 800_000
    assert page.count("<svg") == 3  # memory, seconds, and a drawing of three boxes
    assert page.count('rx="4"') == 3


def test_the_share_of_operations_that_were_left_out() -> None:
    stats = made(2)
    # Of three sites with half of the operations, 2 + 3 of 18 runs were left out.
    assert saved_operations(stats) == pytest.approx(5 / 18 / 2)


def test_a_timeline_merges_the_calls_of_a_step() -> None:
    rows = (Row("a", "full"), Row("b", "mlp"), Row("c", "mlp"))
    calls = (
        Call(0, 0, "CC ", 5, 1, 0.0),
        Call(0, 1, "-C ", 9, 0, 0.0),
        Call(1, 0, "ppC", 2, 0, 0.0),
    )
    timeline = Timeline(rows, calls, {})
    assert timeline.strips() == ["~p", "Cp", " C"]
    assert timeline.memory() == [(9, 1), (2, 0)]
    assert timeline.share("C") == pytest.approx(4 / 7)


def test_statistics_of_a_run_say_what_every_site_did(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallDiT(1).requires_grad_(False)
    options = {"inner": "eager", "ranges": {"spatial": 2, "cross": 3}, "window": (0.0, 1.0)}
    compiled: Any = torch.compile(model, backend="pab", options=options)
    latents, prompt = torch.randn(2, 4, 3, 2, 5), torch.randn(2, 7, 4)
    table = torch.linspace(1, 0.1, 6)
    with torch.no_grad(), pab_compile.generation(timesteps=table):
        for timestep in table:
            compiled(latents, timestep.expand(2), prompt)
    stats = pab_compile.stats(compiled)
    strips = dict(zip(stats.timeline.sites, stats.timeline.strips(), strict=True))
    found = {row.kind: strip for row, strip in strips.items()}
    assert found["spatial"] == "C-C-C-"
    for kind, strip in found.items():
        assert strip.count("C") == stats.computed_steps[kind]
    assert max(device for device, _ in stats.timeline.memory()) == stats.peak_cache_bytes > 0
    assert stats.options["ranges"] == "{'spatial': 2, 'cross': 3}"
    assert stats.explanation is not None
    path = tmp_path / "page.html"
    assert stats.to_html(path) == path.read_text()
    assert all(site.name in path.read_text() for site in stats.explanation.sites)
    assert "linear-gradient" in stats._repr_html_()
    assert "<table" in stats.explanation._repr_html_()
    assert max(map(len, str(stats).splitlines())) <= 80
    json.dumps(stats.to_json())


def test_a_browser_shows_the_page_without_errors_and_filters_it(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    uses_filter = (
        "<script>word.value='blocks.1.'; sift();"
        "const box = document.querySelector('.group .row:not(.hidden) .strip');"
        "box.closest('details').open = true; const at = box.getBoundingClientRect();"
        "box.dispatchEvent(new MouseEvent('click', {bubbles: true,"
        " clientX: at.left + at.width * 0.4, clientY: at.top + 2}));</script>"
    )
    path.write_text(made(3).to_html().replace("</body>", uses_filter + "</body>"))
    dom, said = browser.document(path, tmp_path)
    assert said == []
    assert re.search(r'id="count"[^>]*>3 sites<', dom)
    shown = re.findall(r'<div class="row"[^>]*data-find="([^"]*)"', dom)
    hidden = re.findall(r'<div class="row hidden"[^>]*data-find="([^"]*)"', dom)
    assert [name.split(".")[1] for name in shown] == ["1"] * 3
    assert len(hidden) == 6
    assert "step 2: reused" in dom


def test_an_error_in_a_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("<script>missing();</script>")
    _, said = browser.document(path, tmp_path)
    assert said
