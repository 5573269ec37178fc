"""The page itself: as text, and in a real browser."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from pennyweight.evaluate import Settings
from pennyweight.pipeline.demo import PROMPT, Demo, Version
from pennyweight.pipeline.evaluate import evaluate
from pennyweight.pipeline.quantize import quantize
from pennyweight.pipeline.recipe import Recipe, Rule
from pennyweight.report.content import Plot, Section, Table, Text
from pennyweight.report.demo import report_demo
from pennyweight.report.page import inline, page
from pennyweight.report.report import sections, write_report
from tests.report.browser import chromium
from tests.report.examples import EVIL

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Outline(HTMLParser):
    """Elements that are open, and what the page asks for from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open += [] if tag in VOID else [tag]
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "srcset")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        self.ids += [v for k, v in attrs if k == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(full, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(full.material, path) == ()
    return path


@pytest.fixture(scope="module")
def text(written) -> str:
    return written.read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_nobody(text, written):
    outline = Outline()
    outline.feed(text)
    assert outline.open == [] and outline.handlers == []
    assert all(a.startswith("#") or a == "data:," for a in outline.addresses)
    assert len(set(outline.ids)) == len(outline.ids)
    assert [p.name for p in written.parent.iterdir()] == ["report.html"]


def test_headings_go_down_one_level_at_a_time(text):
    outline = Outline()
    outline.feed(text)
    steps = zip(outline.headings, outline.headings[1:], strict=False)
    assert outline.headings[0] == 1 and all(b - a <= 1 for a, b in steps)


def test_names_are_text(text):
    own = text.replace(json.dumps(EVIL)[1:-1], "")  # plots are data; the next test is about them
    assert "<img" not in own.partition("<script>")[0]
    assert "&lt;img src=x onerror=" in text
    plots = re.search(r'id="plots">(.*?)</script>', text, re.DOTALL)
    assert plots is not None and "<" not in plots[1]


def test_code_is_marked_and_the_rest_escaped():
    assert inline('a <b> `c <d>` "') == "a &lt;b&gt; <code>c &lt;d&gt;</code> &quot;"


def test_every_plot_has_a_label_and_a_table(full, text):
    plots = [p for s in sections(full.material) for p in s.parts if isinstance(p, Plot)]
    assert len(plots) == 10
    assert text.count('class="plot"') == len(plots)
    assert text.count("<details>") == len(plots)
    for plot in plots:
        assert plot.label and plot.table.rows
        assert all(len(row) == len(plot.table.head) for row in plot.table.rows)


def test_series_differ_without_colour(full):
    for section in sections(full.material):
        for plot in (p for p in section.parts if isinstance(p, Plot)):
            traces = [t for t in plot.figure["data"] if t["type"] == "scatter"]
            looks = [
                (t.get("marker", {}).get("symbol"), t["mode"], t.get("line", {}).get("dash"))
                for t in traces
            ]
            assert len(set(looks)) == len(looks), plot.name


def test_a_page_without_plots_carries_no_plotly():
    table = Table(caption="c", head=("a",), rows=(("b",),))
    made = page("t", [Section(name="x", title="X", parts=(Text(text="y"), table))], [])
    assert len(made) < 20_000


def palettes() -> list[dict[str, str]]:
    style = (files("pennyweight.report") / "page.css").read_text(encoding="utf-8")
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    colours = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", s)) for s in (light, dark)]
    return [colours[0], colours[0] | colours[1]]


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_hand():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_and_marks_have_contrast(scheme):
    """4.5 for texts and 3 for marks (WCAG 2.2, 1.4.3 and 1.4.11)."""
    colours = palettes()[scheme]
    for name in ("ink", "muted", "accent", "good", "fair", "poor", "none"):
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for index in range(1, 7):
        assert contrast(colours[f"series-{index}"], colours["paper"]) >= 3, index
    for index in range(5):
        assert contrast(colours["ink"], colours[f"heat-{index}"]) >= 4.5, index


def test_plots_name_colours_that_exist(full):
    named = set()
    for section in sections(full.material):
        for plot in (p for p in section.parts if isinstance(p, Plot)):
            named |= set(re.findall(r"var\(--([a-z0-9-]+)\)", json.dumps(plot.figure)))
    assert named and named <= palettes()[0].keys()


def test_in_a_browser(written, tmp_path):
    """Light, dark and on a phone: every plot drawn, in the colours of the page; nothing on the
    console, and nothing too wide. The pictures stay in the test's folder."""
    ink = "getComputedStyle(document.body).color"
    tick = "getComputedStyle(document.querySelector('#pareto .xtick text')).fill"
    seen = {}
    with chromium(tmp_path / "profile") as browser:
        browser.show(1200, 900)
        browser.open(written)
        browser.wait("return document.documentElement.dataset.drawn === '10'")
        for name, width in (("light", 1200), ("dark", 1200), ("phone", 390)):
            browser.show(width, 900, dark=name == "dark")
            browser.wait(f"return {tick} === {ink}")  # plots follow
            count = "return document.querySelectorAll('[data-drawn=true] .main-svg').length"
            assert browser.run(count) >= 10
            assert browser.run("return document.documentElement.scrollWidth") <= width
            browser.picture(tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 50_000
            seen[name] = browser.run(f"return {ink}")
        assert seen["light"] == seen["phone"] != seen["dark"]
        assert browser.run("return document.title") == written_title(written)
        assert browser.run("return document.images.length") == 0
        assert browser.console() == []


def written_title(path: Path) -> str:
    import html

    found = re.search("<title>(.*?)</title>", path.read_text(encoding="utf-8"))
    assert found is not None
    return html.unescape(found[1])


def test_the_demo_ends_with_its_report(tmp_path):
    """pylm, quantized and measured: the page holds what was measured, from the files it wrote."""
    folder = tmp_path / "demo"
    recipe = Recipe(model="pylm", rule=(Rule(scheme="W4A16_g128", quantizer="rtn"),))
    result = quantize(recipe, folder / "uniform", threads=1)
    settings = Settings(max_tokens=1500, document_tokens=150)
    found = evaluate(result.path, against="pylm", settings=settings)
    assert found.comparison is not None
    version = Version(title="W4A16_g128", result=result, evaluation=found, writes=f"{PROMPT} b")
    demo = Demo(folder=folder, original_writes=f"{PROMPT} a", versions=(version,))
    made = report_demo(demo)
    text = made.read_text(encoding="utf-8")
    assert made == folder / "report.html"
    assert f"{found.comparison.perplexity_change_percent.value:+.2f} %" in text
    assert "35 tensors quantized, 12 copied bit for bit" in text
    assert "Left out for want of data" in text and "Outliers of the activations" in text
    assert report_demo(demo) == made  # again, over its own files
