"""The page about a generation: what it holds, and what a browser makes of it."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

import pab_compile
from helpers import browser
from helpers.captured import SmallDiT
from pab_compile import PabError
from pab_compile.report.animation import animated_png
from pab_compile.report.explanation import Explanation, SiteReport
from pab_compile.report.per_module import PerModule
from pab_compile.report.run_stats import RunStats, saved_operations
from pab_compile.report.text import ShownAsText
from pab_compile.report.timeline import COMPILE, GLUE, REUSE, SITES, Call, Row, Timeline

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
    assert page.count("<svg") == 3  # memory, time, and a drawing of three boxes
    assert page.count('rx="4"') == 3
    assert 'class="rows"' in page


def test_many_rows_that_differ_scroll_on_their_own() -> None:
    stats = made(100)
    states = ["".join("C-"[(n >> step) % 2] for n in range(300)) for step in range(6)]
    calls = [replace(c, states=s) for c, s in zip(stats.timeline.calls, states, strict=True)]
    timeline = replace(stats.timeline, calls=tuple(calls))
    assert 'class="rows many"' in replace(stats, timeline=timeline).to_html()


def test_the_share_of_operations_that_were_left_out() -> None:
    stats = made(2)
    # Of three sites with half of the operations, 2 + 3 of 18 runs were left out.
    assert saved_operations(stats) == pytest.approx(5 / 18 / 2)


def test_the_time_of_a_step_is_shown_by_what_it_went_to() -> None:
    stats = made(1)
    spent = {SITES: 0.05, REUSE: 0.01, COMPILE: 0.1}
    calls = tuple(replace(call, spent=spent) for call in stats.timeline.calls)
    page = replace(stats, timeline=replace(stats.timeline, calls=calls)).to_html()
    for words in ("sites that compute 20%", "sites that reuse 4%", "compiling 40%"):
        assert words in page, words
    assert "outside the model 36%" in page
    assert "glue 0%" not in page
    assert "<title>step 2, compiling: 0.1 s</title>" in page


def test_curves_leave_out_what_is_not_known() -> None:
    page = made(1).to_html(curves={"spatial": [math.nan, 1.0, 0.01], "mlp": [None, 0.1, 0.0]})
    lines = re.findall(r'<polyline points="([^"]*)"', page)
    assert lines == ["500.0,0.0 833.3,100.0", "500.0,50.0"]
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(data)["curves"] == {"spatial": [None, 1.0, 0.01], "mlp": [None, 0.1, 0.0]}


def test_videos_stand_side_by_side_inside_the_page(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"film")
    videos = {"without <reuse>": file, "fast": torch.rand(3, 4, 5), "one": torch.rand(4, 5, 3)}
    page = made(1).to_html(videos=videos)
    assert page.count("<figure>") == 3
    assert "data:video/mp4;base64," + base64.b64encode(b"film").decode() in page
    assert "without &lt;reuse&gt;" in page
    first, second = re.findall(r"data:image/png;base64,([^\"]+)", page)
    assert (b"acTL" in base64.b64decode(first), b"acTL" in base64.b64decode(second)) == (
        True,
        False,
    )


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (7, "is a int"),
        ("none.mp4", "does not exist"),
        (__file__, "no video or picture by its name"),
        (torch.rand(2, 3), r"has the shape \[2, 3\]"),
    ],
)
def test_what_is_no_video_is_refused(video: Any, words: str) -> None:
    with pytest.raises(PabError, match=words):
        made(1).to_html(videos={"a": video})


def test_an_animation_is_a_png_that_others_read(tmp_path: Path) -> None:
    frames = (torch.rand(3, 4, 5, 3) * 255).to(torch.uint8)
    path = tmp_path / "a.png"
    path.write_bytes(animated_png(frames))
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
        for number in range(3):
            image.seek(number)
            shown = torch.from_numpy(numpy.array(image.convert("RGB")))
            assert torch.equal(shown, frames[number])


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
    for call in stats.timeline.calls:
        letters = {found[kind][call.step] for kind in ("spatial", "cross")}
        assert {part for part in call.spent if part not in (GLUE, COMPILE)} == {
            {"C": SITES, "-": REUSE}[letter] for letter in letters
        }
        assert call.spent[GLUE] > 0
        assert sum(call.spent.values()) <= call.seconds
    parts = stats.timeline.seconds_by_part()
    whole = [sum(step) for step in zip(*parts.values(), strict=True)]
    assert whole == pytest.approx(list(stats.timeline.step_seconds.values()))
    assert stats.explanation is not None
    path = tmp_path / "page.html"
    assert stats.to_html(path) == path.read_text()
    assert all(site.name in path.read_text() for site in stats.explanation.sites)
    assert "linear-gradient" in stats._repr_html_()
    assert "</span> computed</span>" in stats._repr_html_()
    assert str(PerModule({"transformer": stats})) == str(stats)
    both = PerModule({"transformer": stats, "transformer_2": stats})
    assert str(both).startswith(f"transformer\n{stats}\n\ntransformer_2\n")
    assert both._repr_html_().count("linear-gradient") == 2 * stats._repr_html_().count("linear-gr")
    assert ShownAsText()._repr_html_().startswith("<pre>&lt;pab_compile.report.text.ShownAsText")
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
