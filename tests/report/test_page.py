"""The page in a real browser, opened from its file with no network: drawn, chosen in, legible, within its width.

The browser is Debian's `chromium` on the PATH, or the one that DYNABERT_CHROMIUM names.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynabert.report import Report, report_run

FIGURES = (
    "front",
    "gaps",
    "exits",
    "grid",
    "search",
    "deployed",
    "pairs",
    "ablations",
    "curves",
    "scores",
    "heads",
    "neurons",
    "coverage",
    "patterns",
    "attention",
)
UNCHANGING = ("exits", "scores", "heads", "coverage")
"""Figures in which there is nothing to choose."""
NARROW, WIDE = 390, 1400
MAX_BYTES = 8_000_000
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
PATIENCE = 120_000  # ms; a page is drawn in two seconds where the machine does nothing else

IDLE = """() => [...document.querySelectorAll('.chart')].every((chart) => chart.dataset.drawn)"""
REDRAWN = "([place, before]) => Number(document.querySelector(place).dataset.drawn) > before"
SHOWING = """(figure) => {
    const canvas = document.querySelector(figure + ' canvas'), offered = document.querySelectorAll(figure + ' select');
    const drawing = canvas ? canvas.toDataURL() : document.querySelector(figure + ' .chart svg').outerHTML;
    return drawing + [...offered].map((select) => select.innerHTML);
}"""
CELLS = """() => ['grid', 'pairs'].flatMap((figure) => {
    const all = (mark) => [...document.querySelectorAll(`#${figure} .chart svg .${mark}`)];
    const colour = (element) => getComputedStyle(element).fill, texts = all('mark-text.role-mark text');
    return all('mark-rect.role-mark path').map((cell, i) => [colour(cell), colour(texts[i])]);
})"""
OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((element) =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !element.closest('.scroll, pre, .skip')).map((element) => element.outerHTML.slice(0, 80))"""
COLOURS = """(figure) => ['axis-label', 'axis-title', 'legend-label']
    .flatMap((role) => [...document.querySelectorAll(`${figure} .chart svg .role-${role} text`)])
    .map((text) => getComputedStyle(text).fill)"""


@dataclass
class Opened:
    """A page, and all that went wrong on it."""

    page: object
    wrong: list[str] = field(default_factory=list)

    def drawn(self) -> None:
        self.page.wait_for_function(IDLE, timeout=PATIENCE)

    def after(self, figure: str, action) -> str:
        """What a figure shows once an action has made it draw again."""
        place = f"#{figure} .chart"
        before = int(self.page.locator(place).get_attribute("data-drawn"))
        action()
        self.page.wait_for_function(REDRAWN, arg=[place, before], timeout=PATIENCE)
        return self.showing(figure)

    def showing(self, figure: str) -> str:
        """Its drawing, and what it offers: of two depths the lowest layer is the same, the number of layers is not."""
        return self.page.evaluate(SHOWING, f"#{figure}")


@pytest.fixture(scope="module")
def made(finished) -> Report:
    return report_run(finished)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    program = os.environ.get("DYNABERT_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("a real browser: install chromium (Debian's package), or set DYNABERT_CHROMIUM to its program")
    playwright = pytest.importorskip("playwright.sync_api", reason="a real browser: install playwright")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=SWITCHES)
        yield opened
        opened.close()


@contextmanager
def opened(browser, path: Path, *, width: int = WIDE, scheme: str = "light") -> Iterator[Opened]:
    """A page of its own, in a browser that cannot reach any network, drawn; nothing may go wrong on it."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    try:
        page = context.new_page()
        there = Opened(page)
        page.on("console", lambda message: there.wrong.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: there.wrong.append(str(error)))
        page.on("requestfailed", lambda request: there.wrong.append(f"failed: {request.url[:80]}"))
        page.on("request", lambda request: there.wrong.append(request.url[:80]) if "http" in request.url[:5] else None)
        page.goto(path.as_uri())
        there.drawn()
        yield there
        assert there.wrong == []
    finally:
        context.close()


@pytest.fixture(scope="module")
def wide(browser, made) -> Iterator[Opened]:
    with opened(browser, made.page) as there:
        yield there


def test_every_figure_of_a_run_with_studies_is_there(made):
    assert made.figures == FIGURES and made.left_out == ()
    assert made.n_bytes < MAX_BYTES


@pytest.mark.parametrize("figure", FIGURES)
def test_every_choice_changes_what_is_drawn(wide, figure):
    page = wide.page
    selects = page.locator(f"#{figure} select")
    assert (selects.count() > 0) == (figure not in UNCHANGING)
    for place in range(selects.count()):
        select = selects.nth(place)
        values = [option.get_attribute("value") for option in select.locator("option").all()]
        assert len(values) > 1 and select.evaluate("(select) => select.labels[0].textContent.length > 0")
        seen = [wide.showing(figure)]
        for value in [*values[1:], values[0]]:
            seen.append(wide.after(figure, lambda value=value, select=select: select.select_option(value)))
        assert len(set(seen)) == len(values), "two choices look the same"
        assert seen[-1] == seen[0], "the first choice, made again, looks as before"
    assert wide.wrong == []


def test_differences_that_may_be_chance_are_hollow(wide):
    """Of the methods at half of the FLOPs one has a p value of 0.01, the other of 0.6; so have the variants."""
    marks = "(figure) => [...document.querySelectorAll(figure + ' .chart svg .mark-symbol.role-mark path')].map(" + (
        "(mark) => getComputedStyle(mark).fillOpacity)"
    )
    assert wide.page.evaluate(marks, "#gaps") == ["1", "0"]
    assert wide.page.evaluate(marks, "#ablations") == ["1", "1", "0"]


def test_methods_can_be_left_out(wide):
    boxes = wide.page.locator("#front input[type=checkbox]")
    assert boxes.count() == 3
    shown = [wide.showing("front")]
    for place in range(2):
        shown.append(wide.after("front", boxes.nth(place).uncheck))
    assert len(set(shown)) == 3
    for place in range(2):
        shown.append(wide.after("front", boxes.nth(place).check))
    assert shown[-1] == shown[0]


def test_selects_answer_to_the_keyboard(wide):
    select = wide.page.locator("#grid select")
    select.focus()
    shown = wide.showing("grid")
    assert wide.after("grid", lambda: wide.page.keyboard.press("ArrowDown")) != shown
    wide.after("grid", lambda: wide.page.keyboard.press("ArrowUp"))


def test_layers_offered_are_those_of_the_size(wide):
    size, layer = wide.page.locator("#attention select").nth(1), wide.page.locator("#attention select").nth(2)
    assert layer.locator("option").all_text_contents() == ["layer 0", "layer 1"]
    wide.after("attention", lambda: size.select_option(label="w0.5-d0.5"))
    assert layer.locator("option").count() == 1
    heads = wide.page.locator("#attention thead th").all_text_contents()
    assert heads == ["token", "head 0", "head 1"], "half the heads"
    wide.after("attention", lambda: size.select_option("0"))


def test_every_figure_has_its_numbers_as_a_table(wide):
    for figure in FIGURES:
        assert wide.page.locator(f"#{figure} details table tr").count() > 1, figure


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_legible_and_within_its_width(browser, made, width, scheme):
    with opened(browser, made.page, width=width, scheme=scheme) as there:
        for fold in there.page.locator("details.numbers > summary").all():
            fold.click()
        assert there.page.evaluate(OVERFLOWING) == []
        assert there.page.evaluate("document.documentElement.scrollWidth") <= width
        ground = there.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (luminance(ground) > 0.5) == (scheme == "light")
        labels = there.page.evaluate(COLOURS, "section")
        assert len(labels) > 50
        assert min(contrast(label, ground) for label in labels) >= 4.5
        cells = there.page.evaluate(CELLS)
        assert len(cells) == 4 + 25
        assert min(contrast(*cell) for cell in cells) >= 4.5


def test_charts_follow_the_page_from_light_to_dark(browser, made):
    with opened(browser, made.page) as there:
        before = set(there.page.evaluate(COLOURS, "#front"))
        there.after("front", lambda: there.page.emulate_media(color_scheme="dark"))
        assert before and before.isdisjoint(there.page.evaluate(COLOURS, "#front"))


PANELS = """() => [...document.querySelectorAll('#coverage .chart svg [class$="_cell"] > g > path.background')]
    .map((cell) => cell.getBoundingClientRect()).map(({ top, width }) => [top, width])"""


@pytest.mark.parametrize(("width", "n_abreast"), [(NARROW, 1), (WIDE, 2)])
def test_panels_stand_side_by_side_where_there_is_room(browser, made, width, n_abreast):
    with opened(browser, made.page, width=width) as there:
        panels = there.page.evaluate(PANELS)
        assert len(panels) == 4, "two numbers of layers, two measures"
        assert len({round(top) for top, _ in panels}) == 4 / n_abreast
        assert all(least > 200 for _, least in panels)


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2 of a colour as ``rgb(1, 2, 3)``."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
