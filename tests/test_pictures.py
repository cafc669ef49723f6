"""Charts as files of their own: well-formed, with everything in them, for light and for dark pages."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from bench.charts import Bar, Key, Stack, bar_chart, stack_chart
from bench.measure import Spread
from bench.pictures import picture, write_picture
from bench.style import COLORS, DARK, LIGHT
from bench.training_charts import Dots, dot_chart

SVG = "{http://www.w3.org/2000/svg}"


def bars(**options: object) -> Markup:
    values = [Bar("torch <&>", Spread(2, 1, 3), 0, "fast", (2.5, None), "exact"), Bar("dali", Spread(4, 4, 4), 9)]
    return bar_chart(values, title="t", unit="images/s", **options)  # type: ignore[arg-type]


def test_a_picture_needs_nothing_else_and_knows_both_pages() -> None:
    text = picture(bars(), "Rates of <torch> & dali")
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert root.attrib["viewBox"] == f"0 0 {width:.0f} {height:.0f}"
    shown = {"".join(node.itertext()) for node in root.iter(f"{SVG}text")}
    assert {"Rates of <torch> & dali", "torch <&>", "2 (1–3)  exact", "4", "images/s"} <= shown
    assert not re.search(r"var\(|url\(|href|@import", text), "colors are written out, and nothing is fetched"
    light, dark = text.split("@media (prefers-color-scheme: dark)")
    assert all(color in light and color not in dark for color in (LIGHT.card, LIGHT.ink, *LIGHT.series))
    assert all(color in dark and color not in light for color in (DARK.card, DARK.ink, *DARK.series))
    assert len(LIGHT.series) == len(DARK.series) == COLORS


def test_the_drawing_lies_within_the_card() -> None:
    root = ElementTree.fromstring(picture(bars(key=(Key("measured", 0), Key("bar", limit=0))), "word " * 60))
    (group,) = root.iter(f"{SVG}g")
    left, top, scale = (float(number) for number in re.findall(r"[\d.]+", group.attrib["transform"]))
    captions = [node for node in root.iter(f"{SVG}text") if node.attrib["class"] == "caption"]
    assert len(captions) > 2, "a long caption is wrapped"
    assert max(float(node.attrib["y"]) for node in captions) < top
    for node in group.iter(f"{SVG}text"):
        assert 0 < left + scale * float(node.attrib["x"]) < float(root.attrib["width"])
        assert top < top + scale * float(node.attrib["y"]) < float(root.attrib["height"])


def test_a_wide_chart_is_not_made_smaller() -> None:
    root = ElementTree.fromstring(picture(bars(width=900), "Wide"))
    assert float(root.attrib["width"]) > 900


def test_files_are_written_and_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images" / "a.svg"
    write_picture(path, bars(), "Rates")
    assert path.read_text(encoding="utf-8") == picture(bars(), "Rates")
    with pytest.raises(ValueError, match="nothing to see in 'Rates'"):
        write_picture(path, bar_chart([], title="t", unit="u"), "Rates")


def test_dots_lie_on_their_axis_and_means_between_them() -> None:
    drawn = ElementTree.fromstring(dot_chart([Dots("torch", [66.98, 69.4, 67.24]), Dots("roi", [67.5])], title="t"))
    places = [float(circle.attrib["cx"]) for circle in drawn.iter("circle")]
    assert len(places) == 4
    assert places[0] < places[2] < places[1]
    width = float(drawn.attrib["viewBox"].split()[2])
    assert all(0 < place < width for place in places)
    means = [float(re.match(r"M([\d.]+)", path.attrib["d"])[1]) for path in drawn.iter("path")]  # type: ignore[index]
    assert means[0] == pytest.approx(sum(places[:3]) / 3, abs=0.1)
    assert "67.87 ± 1.33" in {text.text for text in drawn.iter("text")}
    assert not dot_chart([], title="t")


def test_limits_lie_on_the_axis_and_values_behind_all_of_it() -> None:
    rows = [Bar("a", Spread(2, 2, 2), 0, limits=(4.0, 1.0)), Bar("b", Spread(3, 3, 3), 0, limits=(None, None))]
    drawn = ElementTree.fromstring(bar_chart(rows, title="t", unit="u"))
    (left, *_), widths = (
        [float(rect.attrib[name]) for rect in drawn.iter("rect")] for name in ("x", "width")
    )  # fmt: skip
    limits = {path.attrib["class"]: float(path.attrib["d"][1:].split()[0]) for path in drawn.iter("path")}
    assert limits["limit"] == pytest.approx(left + 2 * widths[0], abs=0.2)
    assert limits["faint"] == pytest.approx(left + widths[0] / 2, abs=0.2)
    values = [float(text.attrib["x"]) for text in drawn.iter("text") if text.attrib["class"] == "value"]
    assert values[0] == values[1] > limits["limit"]


def test_stacked_parts_lie_end_to_end() -> None:
    rows = [Stack("roi", [1.0, 0.0, 3.0], "128 px"), Stack("files", [2.0, 2.0, 4.0], "224 px")]
    drawn = ElementTree.fromstring(stack_chart(rows, ["read", "cut", "decode"], title="t", unit="µs"))
    parts = [(float(rect.attrib["x"]), float(rect.attrib["width"])) for rect in drawn.iter("rect")][
        3:
    ]  # behind the key
    for (x, width), (following, _) in itertools.pairwise(parts[:3]):
        assert x + width == pytest.approx(following, abs=0.2)
    assert sum(width for _, width in parts[3:]) == pytest.approx(2 * sum(width for _, width in parts[:3]), abs=0.3)
    assert {"4", "8", "128 px", "decode"} <= {text.text for text in drawn.iter("text")}
    assert not stack_chart([], [], title="t", unit="u")
