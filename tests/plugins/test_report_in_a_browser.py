"""The report in a browser: its charts are drawn, on a phone and a desktop, light and dark, and nothing else runs."""

from __future__ import annotations

import io
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from recorded_run import Attempt, record_run
from selenium import webdriver

from farandole.plugins.metrics.report.page import make_page

pytestmark = pytest.mark.exhaustive

RESTARTED = (Attempt(4, 0, 200, "worker 3 was lost", error=True), Attempt(3, 150, 400), Attempt(4, 380, 500))
MARKUP = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}
# What each chart must show, by the names of colours in the page's style sheet.
COLOURS = {
    "loss": ("accent", "card"),
    "speed": ("accent", "card"),
    "split": ("data", "forward", "backward", "update", "wait", "card"),
    "waiting": ("alarm",),
    "logged-0": ("accent", "card"),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("this test needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = record_run(folder / "run", RESTARTED, slow=2, host=MARKUP, logged=[MARKUP])
    (folder / "page.html").write_text(make_page(run))
    return folder / "page.html"


def show(browser: Any, page: Path, size: str, theme: str) -> None:
    """Open a page, and wait until its charts are drawn."""
    width, height = SIZES[size]
    phone = size == "phone"
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    prefer(browser, theme)
    browser.get(page.as_uri())
    until = time.monotonic() + 20
    while not browser.execute_script("return document.documentElement.dataset.drawn"):
        assert time.monotonic() < until, browser.get_log("browser")
        time.sleep(0.1)


def prefer(browser: Any, theme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def pixels(browser: Any, name: str) -> Counter[tuple[int, ...]]:
    """Count the colours of a chart as it is seen."""
    element = browser.find_element("id", name)
    browser.execute_script("arguments[0].scrollIntoView()", element)
    image = Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")
    return Counter({colour: number for number, colour in image.getcolors(image.width * image.height) or []})


def colour(browser: Any, name: str) -> tuple[int, ...]:
    style = f"return getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    return tuple(bytes.fromhex(browser.execute_script(style).removeprefix("#")))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_all_charts_are_drawn(browser: Any, page: Path, size: str, theme: str) -> None:
    show(browser, page, size, theme)
    assert browser.execute_script("return document.documentElement.dataset.drawn") == str(len(COLOURS))
    for name, shown in COLOURS.items():
        seen = pixels(browser, name)
        assert {each: seen[colour(browser, each)] for each in shown if seen[colour(browser, each)] < 40} == {}, name
    # Of the heat map: it has many shades, and those of the slow worker's row are not the others'.
    assert len(pixels(browser, "waiting")) > 50
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "it is too wide"
    assert browser.get_log("browser") == []


def test_names_stay_text(browser: Any, page: Path) -> None:
    show(browser, page, "desktop", "light")
    assert browser.execute_script("return window.hacked") is None
    assert [each.text for each in browser.find_elements("tag name", "h2")].count(MARKUP) == 1
    assert not browser.find_elements("tag name", "img")


def test_a_script_from_elsewhere_does_not_run(browser: Any, page: Path) -> None:
    show(browser, page, "desktop", "light")
    browser.execute_script(
        "const made = document.createElement('script'); made.textContent = arguments[0]; document.body.append(made)",
        "window.hacked = 1",
    )
    assert browser.execute_script("return window.hacked") is None
    assert "Content Security Policy" in browser.get_log("browser")[0]["message"]


def test_the_theme_may_change_while_it_is_open(browser: Any, page: Path) -> None:
    show(browser, page, "desktop", "light")
    light = colour(browser, "accent")
    prefer(browser, "dark")
    time.sleep(1)
    seen = pixels(browser, "loss")
    assert seen[colour(browser, "accent")] > 40 and not seen[light]


def test_a_stretch_of_steps_is_shown_in_all_charts(browser: Any, page: Path) -> None:
    show(browser, page, "desktop", "light")
    chosen = "{'xaxis.range[0]': 100, 'xaxis.range[1]': 200}"
    browser.execute_async_script(f"Plotly.relayout('loss', {chosen}).then(() => setTimeout(arguments[0], 500))")
    ranges = "return ['loss', 'speed', 'waiting'].map((name) => document.getElementById(name).layout.xaxis.range)"
    assert browser.execute_script(ranges) == [[100, 200]] * 3


def test_256_workers_are_drawn_soon(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(make_page(record_run(tmp_path / "run", [Attempt(256, 0, 1000)], slow=77)))
    show(browser, tmp_path / "page.html", "phone", "dark")
    assert len(pixels(browser, "waiting")) > 50
    assert pixels(browser, "split")[colour(browser, "backward")] > 1000
    assert browser.get_log("browser") == []
