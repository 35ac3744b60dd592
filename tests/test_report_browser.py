"""The page in headless Chromium: silent, without a request, moved by its slider, readable at two widths and themes."""

import shutil
import xml.etree.ElementTree as ET

import pytest
from made_up_runs import flow_data, folder
from playwright.sync_api import expect, sync_playwright

from chordflow.cli import main
from chordflow.report import write_report

pytestmark = pytest.mark.slow

FIGURES = ["outputs", "cost", "seconds", "deviation", "spectrum", "reach", "drift", "classes", "heldout"]
LOOKS = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]
PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    assert path, "these tests drive Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two runs of the shapes of the default run: 200 samples of ten classes, and 100 for the stiff flows, 61 saves."""
    out = tmp_path_factory.mktemp("browser")
    bends = {"straight": (0.0, 200), "adapted": (1e-7, 200), "standard": (3.0, 100), "interpolated(0.5)": (2.0, 100)}

    def flows(seed):
        shape = {"seed": seed, "classes": 10, "saves": 61}
        return {flow: flow_data(bend=bend, samples=samples, **shape) for flow, (bend, samples) in bends.items()}

    runs = [folder(out / name, flows(seed)) for seed, name in enumerate(("tanh", "gelu"))]
    return write_report([run.path for run in runs], out / "report.html")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The page of a run that was one: of logits with one-hot labels, which have no finite end."""
    out = tmp_path_factory.mktemp("real") / "run"
    words = ["data.name=wine", "data.samples=6", "model.widths=4", "saves=7", "loss=cross_entropy", "flows=standard"]
    assert main(["run", *words, f"out={out}", "--quiet"]) == 0
    return write_report([out])


class Visit:
    """An open page, and everything it said or asked for."""

    def __init__(self, browser, path, width=DESKTOP, theme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def places(self, kind: str) -> list:
        """Where each mark is on the screen."""
        return self.page.evaluate(
            "kind => [...document.querySelectorAll(`svg.${kind} .mark`)].map(m => {"
            "const b = m.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]})",
            kind,
        )

    def cursors(self) -> list:
        return self.page.evaluate("[...document.querySelectorAll('.cursor')].map(c => c.getAttribute('transform'))")


@pytest.mark.parametrize(("width", "theme"), LOOKS)
def test_every_figure_is_there_and_nothing_is_said_or_asked(browser, report, width, theme):
    kind = "narrow" if width == PHONE else "wide"
    with Visit(browser, report, width, theme) as visit:
        page = visit.page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "no scrolling sideways"
        for name in FIGURES:
            shown, hidden = (
                page.locator(f"#{name}-{kind}"),
                page.locator(f"#{name}-{'wide' if width == PHONE else 'narrow'}"),
            )
            assert not hidden.is_visible()
            shown.scroll_into_view_if_needed()
            assert shown.is_visible()
            box = shown.bounding_box()
            assert box["width"] >= 300
            assert box["height"] >= 120
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert page.locator(f"#{name} figcaption").is_visible()
            assert page.locator(f"#{name} a.download").is_visible()
        # Images inside the pictures, too.
        assert page.evaluate(
            "[...document.querySelectorAll('image')].every(i => i.getAttribute('href').startsWith('data:'))"
        )
        assert visit.said == []
        assert visit.asked == [report.as_uri()]


OUTSIDE = """kind => [...document.querySelectorAll(`figure svg.${kind}`)].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < frame.left - 2 || box.right > frame.right + 2 || box.top < frame.top - 2
      || box.bottom > frame.bottom + 2 || Math.max(box.height, box.width) < 7);
  }).map(text => `${svg.id}: ${text.textContent}`);
})"""
OVERLAPS = """kind => [...document.querySelectorAll(`figure svg.${kind}`)].flatMap(svg => {
  const boxes = [...svg.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
  return boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4.5
  ).map(([other]) => `${svg.id}: ${one} / ${other}`));
})"""


@pytest.mark.parametrize("which", ["report", "real"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_words_in_figures_are_inside_and_apart(browser, which, width, request):
    kind = "narrow" if width == PHONE else "wide"
    with Visit(browser, request.getfixturevalue(which), width) as visit:
        assert visit.page.evaluate(OUTSIDE, kind) == []
        assert visit.page.evaluate(OVERLAPS, kind) == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_of_a_real_run_is_silent_and_its_slider_moves(browser, real):
    with Visit(browser, real, PHONE, "dark") as visit:
        before = visit.places("narrow")
        visit.page.get_by_label("Clock time").press("Home")
        assert before
        assert before != visit.places("narrow")
        assert visit.said == []
        assert visit.asked == [real.as_uri()]


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_the_slider_moves_the_picture_by_its_keys(browser, report, width):
    kind = "narrow" if width == PHONE else "wide"
    with Visit(browser, report, width) as visit:
        page = visit.page
        slider = page.get_by_label("Clock time")
        slider.focus()
        before, lines = visit.places(kind), visit.cursors()
        page.keyboard.press("PageUp")
        after = visit.places(kind)
        assert all(a != b for a, b in zip(before, after, strict=True)), "every mark moves"
        assert all(a != b for a, b in zip(lines, visit.cursors(), strict=True)), "and every line"
        page.keyboard.press("Home")
        start = visit.places(kind)
        assert page.locator("#now").inner_text() == "t = 0.000, s/N = 0.00"
        # All flows start at one end of the chord.
        assert max(abs(place[i] - start[0][i]) for place in start for i in (0, 1)) < 0.5
        page.keyboard.press("End")
        assert slider.get_attribute("aria-valuetext") == "t = 1, s/N = ∞"
        end = visit.places(kind)
        assert max(abs(place[i] - end[0][i]) for place in end for i in (0, 1)) < 0.5, "these flows all arrive"
        assert end[0][0] - start[0][0] > 100
        cells = page.locator("[data-live=deviation]").all_inner_texts()
        assert len(cells) == 8
        assert visit.said == []


def test_play_runs_to_the_end_and_stops(browser, report):
    with Visit(browser, report) as visit:
        play = visit.page.get_by_role("button", name="Play")
        visit.page.evaluate("document.getElementById('clock').value = 950")
        play.click()
        expect(visit.page.locator("#play")).to_have_text("Pause")
        expect(visit.page.locator("#clock")).to_have_value("1000")
        expect(visit.page.locator("#play")).to_have_text("Play")


def colours(page) -> tuple[str, str]:
    return page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, "
        "getComputedStyle(document.querySelector('#cost-wide text')).fill]"
    )


def brightness(colour: str) -> float:
    return sum(float(part) for part in colour.strip("rgb()").split(","))


def test_the_theme_follows_the_system_and_its_button(browser, report):
    with Visit(browser, report, theme="dark") as visit:
        back, ink = colours(visit.page)
        assert brightness(back) < 150 < 600 < brightness(ink)
        visit.page.get_by_role("button", name="Light or dark").click()
        back, ink = colours(visit.page)
        assert brightness(back) > 600 > 150 > brightness(ink)
        visit.page.get_by_role("button", name="Light or dark").click()
        visit.page.emulate_media(media="print")
        back, ink = colours(visit.page)
        assert brightness(back) > 600 > 150 > brightness(ink), "paper is white"
        assert not visit.page.locator("#clock").is_visible()
        assert visit.page.locator("#cost-wide").is_visible()


def test_a_download_is_a_picture_on_its_own(browser, report, tmp_path):
    with Visit(browser, report, theme="dark") as visit:
        for name in FIGURES:
            with visit.page.expect_download() as download:
                visit.page.locator(f"#{name} a.download").click()
            assert download.value.suggested_filename == f"{name}.svg"
            download.value.save_as(tmp_path / f"{name}.svg")
        assert visit.said == []
    for name in FIGURES:
        text = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in text, "no variables of the page"
        assert "#222222" in text, "the colours of paper, though the page is dark"
        assert 'class="mark"' not in text
        assert 'class="cursor"' not in text
    with Visit(browser, tmp_path / f"{FIGURES[0]}.svg") as visit:
        for name in FIGURES[1:]:
            visit.page.goto((tmp_path / f"{name}.svg").as_uri())
        assert visit.said == []


def test_a_request_and_an_error_would_be_seen(browser, report, tmp_path):
    """The negative control: what the tests above look for is noticed where it happens, and the policy stops it."""
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    broken.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main><script>nope()</script>'))
    with Visit(browser, broken) as visit:
        visit.page.wait_for_timeout(200)
        assert any("nope" in line for line in visit.said)
        assert any("Content Security Policy" in line for line in visit.said)


def test_the_page_is_small(report):
    """Two runs of the shapes of the default run; pictures do not grow with the number of samples."""
    assert report.stat().st_size < 4e6
