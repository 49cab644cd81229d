"""The picture of the sites."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from helpers.golden import check_golden
from pab_compile.report.draw import SiteBox, format_bytes, to_dot, to_svg

SVG = "{http://www.w3.org/2000/svg}"
MIB = 1024**2


def latte(num_blocks: int) -> list[SiteBox]:
    """Sites of a model with separate spatial, cross and temporal attention."""
    return [
        SiteBox(f"blocks.{block}.{kind}", kind, (axes, "sdpa"), every, 72 * MIB)
        for block in range(num_blocks)
        for kind, axes, every in (
            ("spatial", "h*w", 2),
            ("cross", "h*w <- text", 6),
            ("temporal", "t", 4),
        )
    ]


def frames(svg: str) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of every site's box in a picture."""
    boxes = ElementTree.fromstring(svg).findall(f"{SVG}g/{SVG}rect")
    sizes = [[int(box.attrib[key]) for key in ("x", "y", "width", "height")] for box in boxes]
    return [(x, y, x + width, y + height) for x, y, width, height in sizes]


def test_dot_of_two_blocks() -> None:
    check_golden("sites_dot", to_dot(latte(2)))


def test_84_sites_make_28_rows_of_three_that_do_not_overlap() -> None:
    svg = to_svg(latte(28))
    found = frames(svg)
    assert len(found) == 84
    assert len({left for left, _, _, _ in found}) == 3
    assert len({top for _, top, _, _ in found}) == 28
    for index, (left, top, right, bottom) in enumerate(found):
        for other_left, other_top, other_right, other_bottom in found[index + 1 :]:
            apart_across = right < other_left or other_right < left
            assert apart_across or bottom < other_top or other_bottom < top
    root = ElementTree.fromstring(svg)
    assert max(right for _, _, right, _ in found) < int(root.attrib["width"])
    assert max(bottom for _, _, _, bottom in found) < int(root.attrib["height"])
    assert "84 sites, 84 broadcast, 5.906 GiB cached" in svg


def test_text_stays_inside_its_box() -> None:
    name, reason = "blocks." * 20 + "attn", "not broadcast: " * 10
    svg = to_svg([SiteBox(name, "text", (reason,), 1, 0)])
    texts = [text.text or "" for text in ElementTree.fromstring(svg).findall(f"{SVG}g/{SVG}text")]
    ((left, _, right, _),) = frames(svg)
    assert max(map(len, texts)) * 0.6 * 11 <= right - left
    assert texts[0].startswith("…")
    assert texts[0].endswith("blocks.attn")  # the end of a path tells it from others
    assert texts[1].startswith("not broadcast")
    assert texts[1].endswith("…")


def test_a_site_of_every_step_is_hollow_and_caches_nothing() -> None:
    svg = to_svg([SiteBox("a", "mlp", (), 1, 0), SiteBox("b", "mlp", (), 3, 2 * MIB)])
    fills = re.findall(r'rx="4" fill="(#\w+)"', svg)
    assert fills[0] == "#ffffff" != fills[1]
    assert "2 sites, 1 broadcast, 2.0 MiB cached" in svg


def test_names_are_escaped() -> None:
    boxes = [SiteBox('a<b>&"c"\\', "odd kind", ("x < y",), 2, 8)]
    title = ElementTree.fromstring(to_svg(boxes)).find(f"{SVG}g/{SVG}title")
    assert title is not None
    assert (title.text or "").startswith('a<b>&"c"\\\nodd kind\nx < y')
    assert 'a<b>&\\"c\\"\\\\\\l' in to_dot(boxes)


def test_a_model_without_sites_is_still_a_picture() -> None:
    assert frames(to_svg([])) == []
    assert "stream_in -> stream_out" in to_dot([])


@pytest.mark.parametrize(
    ("every", "text"),
    [
        (1, "every step"),
        (2, "every 2nd step, 1.0 MiB"),
        (3, "every 3rd step, 1.0 MiB"),
        (4, "every 4th step, 1.0 MiB"),
        (11, "every 11th step, 1.0 MiB"),
        (21, "every 21st step, 1.0 MiB"),
    ],
)
def test_rhythm_is_english(every: int, text: str) -> None:
    assert SiteBox("a", "full", (), every, MIB).rhythm == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (24 * MIB, "24.0 MiB"),
        (6341787648, "5.906 GiB"),
        (5000 * 1024 * MIB, "5000.000 GiB"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text
