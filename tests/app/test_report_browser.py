"""The report as a browser shows it. Needs Chromium: Debian's package, or PGNN_CHROMIUM."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = os.environ.get("PGNN_CHROMIUM") or shutil.which("chromium")
REQUIRED = "PGNN_NEED_BROWSER" in os.environ  # set where these tests must not be skipped

if BROWSER is None and not REQUIRED:
    pytest.skip(
        "no Chromium here: install Debian's package chromium, or name a browser in PGNN_CHROMIUM",
        allow_module_level=True,
    )
if REQUIRED:
    from playwright import sync_api
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"], timeout=120_000
        )
        yield chromium
        chromium.close()


@pytest.fixture(params=[1440, 390])
def page(request: pytest.FixtureRequest, browser: Any, reported: Path) -> Iterator[Any]:
    """The report of a small run, at the width of a screen and of a phone; no error is written."""
    yield from opened(browser, reported, request.param)


@pytest.fixture
def frozen_page(browser: Any, frozen: Path) -> Iterator[Any]:
    """The report of a small run of the default flow."""
    yield from opened(browser, frozen, 1440)


def opened(browser: Any, run: Path, width: int) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": width, "height": 900})
    context.set_default_timeout(60_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # which leaving the page does
            said.append(f"{request.failure}: {request.url}")

    page.on("requestfailed", failed)
    page.goto((run / "report.html").as_uri())
    yield page
    assert said == []
    context.close()


def values(page: Any) -> list[float]:
    texts = page.locator("#cards .value").all_inner_texts()
    return [float(text) for text in texts]


def test_it_fits_the_width_and_shows_the_figures(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.locator("#figures tbody tr").count() == 3
    assert page.locator("#classes .class").count() == 6  # five classes and the background
    assert page.locator("#curves figure").count() >= 3
    assert "train segmenter" in page.locator("#cost").inner_text()
    for image in page.locator("img").all():
        assert image.get_attribute("alt")


def test_the_first_view_takes_less_than_a_second(page: Any) -> None:
    took = []
    for _ in range(3):  # the machine may be busy with something else
        page.reload()
        took.append(
            page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        )
    assert 0 < min(took) < 1000  # milliseconds; the script has run by then


def test_the_worst_come_first_and_classes_filter(page: Any) -> None:
    assert page.locator("#cards .card").count() == 20
    found = values(page)
    assert found == sorted(found) and len(found) == 20
    page.locator("#gallery-class").select_option(index=2)
    name = page.locator("#gallery-class option:checked").inner_text()
    count = page.locator("#cards .card").count()
    assert 0 < count < 20
    assert page.locator("#gallery-count").inner_text() == f"{count} of 20 photos"
    assert values(page) == sorted(values(page))
    page.locator("#gallery-name").fill("no such photo")
    assert page.locator("#cards .card").count() == 0
    assert name


def test_every_picture_is_there(page: Any) -> None:
    page.locator("#cards .card").last.scroll_into_view_if_needed()
    page.wait_for_function(
        "[...document.querySelectorAll('#cards img')].every(i => i.complete && i.naturalWidth > 0)"
    )


def test_the_border_between_two_pictures_moves(page: Any) -> None:
    page.locator("#cards .card").first.click()
    name = page.locator("#viewer-title").inner_text()
    page.locator("#left").select_option("truth")
    page.locator("#right").select_option(label="CAM, labels")
    assert "-truth.png" in page.locator("#picture-left img").last.get_attribute("src")
    assert "-cam.png" in page.locator("#picture-right img").last.get_attribute("src")
    slider = page.locator("#wipe")
    slider.focus()
    before = float(slider.input_value())
    for _ in range(5):
        slider.press("ArrowRight")
    assert float(slider.input_value()) == before + 5
    clip = page.locator("#picture-right").evaluate("e => getComputedStyle(e).clipPath")
    assert f"{before + 5:g}%" in clip
    results = page.locator("#photo-scores tbody tr td:not(.number)").all_inner_texts()
    assert set(results) == {"CAM, labels", "P-GNN, labels"}
    assert page.locator("#viewer").evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    page.locator("#viewer-next").click()
    assert page.locator("#viewer-title").inner_text() != name
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()


def test_the_default_flow_compares_photo_cam_map_labels_and_truth(frozen_page: Any) -> None:
    page = frozen_page
    assert page.locator("#gallery-layer option").all_inner_texts() == [
        *("photo", "P-GNN, labels", "truth")
    ]
    page.locator("#cards .card").first.click()
    shown = page.locator("#left option").all_inner_texts()
    kinds = [text.split(" of ")[0] for text in dict.fromkeys(shown)]
    assert list(dict.fromkeys(kinds)) == [
        *("photo", "CAM, map", "P-GNN, map", "P-GNN, labels", "truth")
    ]
    sources = set()
    for text in shown:
        page.locator("#left").select_option(label=text)
        page.wait_for_function(
            "[...document.querySelectorAll('#picture-left img')]"
            ".every(i => i.complete && i.naturalWidth > 0)"
        )
        sources.add(page.locator("#picture-left img").last.get_attribute("src"))
    assert len(sources) == len(shown)


def heat(page: Any, stage: str) -> str:
    """What a canvas shows."""
    return page.locator(f"{stage} canvas").first.evaluate("canvas => canvas.toDataURL()")


def test_why_in_three_clicks(page: Any) -> None:
    page.locator("#contents a", has_text="Why").click()
    page.locator("#why .card").first.click()
    page.wait_for_function("document.querySelectorAll('#lines line').length > 0")
    first = heat(page, "#own-stage")
    page.locator("#own-stage").click(position={"x": 8, "y": 8})
    text = page.locator("#explain-text").inner_text()
    assert text.startswith("Row 1, column 1:") and "Of the partners" in text
    assert heat(page, "#own-stage") != first
    assert page.locator("#partners canvas").count() == 3
    assert page.locator("#lines line").count() > 3  # within the photo, and to partners
    page.locator("#own-stage").press("ArrowDown")
    assert page.locator("#explain-text").inner_text().startswith("Row 2, column 1:")
    page.locator("#entry").select_option(index=1)
    assert "4 \u00d7 4 positions" in page.locator("#explain-hint").inner_text()
    scroll = page.locator("#viewer").evaluate("e => e.scrollWidth <= e.clientWidth + 1")
    assert scroll


def test_ten_thousand_photos(browser: Any, reported: Path, tmp_path: Path) -> None:
    """The data of a page with 500 times as many photos; their pictures are the same ones."""
    text = (reported / "report.html").read_text(encoding="utf-8")
    head, rest = text.split('<script type="application/json" id="data">', 1)
    content, tail = rest.split("</script>", 1)
    data = json.loads(content)
    few = data["galleries"][0]["photos"]
    many = [few[i % 20] | {"id": f"photo-{i}"} for i in range(10_000)]
    data["galleries"][0]["photos"] = many
    page_file = tmp_path / "report.html"
    page_file.write_text(
        f'{head}<script type="application/json" id="data">{json.dumps(data)}</script>{tail}',
        encoding="utf-8",
    )
    shutil.copytree(reported / "report", tmp_path / "report")
    page = browser.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("#gallery-count").inner_text() == "10000 of 10000 photos"
    before = page.locator("#cards .card").count()
    assert before <= 96  # made as they are scrolled to
    page.locator("#cards .card").last.scroll_into_view_if_needed()
    page.wait_for_function(f"document.querySelectorAll('#cards .card').length > {before}")
    page.close()
