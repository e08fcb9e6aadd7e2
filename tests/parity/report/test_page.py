"""The page in headless Chromium: slider and zoom by keyboard, mouse and touch; phone, dark, print; no script; no request."""

import base64
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONES = ((390, 844), (320, 568))


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    """Chromium under Selenium; skipped without them, unless MGVQ_REQUIRE_CHROMIUM=1."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = [name for name, found in (("chromium", browser), ("chromedriver", shutil.which("chromedriver"))) if not found]
    if importlib.util.find_spec("selenium") is None:
        missing.append("selenium")
    if missing:
        reason = f"{', '.join(missing)} not found: apt-get install chromium chromium-driver; pip install selenium"
        pytest.fail(reason) if os.environ.get("MGVQ_REQUIRE_CHROMIUM") == "1" else pytest.skip(reason)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def opened(driver: Any, page: Path) -> Iterator[Any]:
    """The page, freshly loaded on a desktop; afterwards: nothing was logged and nothing but the page was asked for."""
    from urllib.parse import unquote

    for command in ("Emulation.clearDeviceMetricsOverride", "Emulation.setEmulatedMedia"):
        driver.execute_cdp_cmd(command, {})
    driver.get_log("performance")
    driver.get(page.as_uri())
    yield driver
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    assert {unquote(url) for url in asked if not url.startswith("data:")} == {unquote(page.as_uri())}


def element(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def state(driver: Any) -> dict[str, float]:
    """Of the first slider: how much of the original is shown (share of the frame), zoom, and where it is scrolled to."""
    return driver.execute_script("""
        const root = document.querySelector(".compare"), scroller = root.querySelector(".scroller"), stage = root.querySelector(".stage");
        const before = root.querySelector(".before"), hidden = Number(getComputedStyle(before).clipPath.match(/^inset\\(0px ([0-9.]+)px/)?.[1] ?? 0);
        return {
            shown: (stage.clientWidth - hidden - scroller.scrollLeft) / scroller.clientWidth,
            handle: parseFloat(root.querySelector(".handle").style.left) / scroller.clientWidth,
            zoom: stage.clientWidth / scroller.clientWidth,
            left: scroller.scrollLeft, top: scroller.scrollTop,
            value: Number(root.querySelector("input").value) / 100,
        };""")


def press(driver: Any, selector: str, *keys: str) -> dict[str, float]:
    element(driver, selector).send_keys(*keys)
    return state(driver)


def check_split(driver: Any, share: float) -> None:
    """Picture, handle and slider all stand at ``share`` of the frame."""
    found = state(driver)
    assert (found["shown"], found["handle"], found["value"]) == (pytest.approx(share, abs=0.02),) * 3, found


# ---- slider


def test_the_slider_moves_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    check_split(opened, 0.5)
    for keys, share in (((Keys.HOME,), 0), ((Keys.END,), 1), ((Keys.HOME, *[Keys.ARROW_RIGHT] * 30), 0.3)):
        press(opened, ".compare input", *keys)
        check_split(opened, share)
    press(opened, ".compare .scroller", *[Keys.ARROW_RIGHT] * 10)
    check_split(opened, 0.5)
    press(opened, ".compare .scroller", *[Keys.ARROW_LEFT] * 40)
    check_split(opened, 0)


def test_every_control_is_reached_by_tab_and_shows_it(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(14):
        ActionChains(opened).send_keys(Keys.TAB).perform()
        reached.append(
            opened.execute_script(
                "const one = document.activeElement; return [one.className || one.dataset.zoom || one.type || one.tagName, getComputedStyle(one).outlineStyle];"
            )
        )
    assert [name for name, _ in reached] == [*["A"] * 7, "scroller", "range", "out", "in", "fit", "scroller", "range"]
    assert all(outline != "none" for _, outline in reached)


def test_the_slider_moves_by_mouse(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    frame = element(opened, ".compare .frame")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", frame)
    quarter = frame.size["width"] // 4
    ActionChains(opened).drag_and_drop_by_offset(element(opened, ".compare .handle"), quarter, 0).perform()
    check_split(opened, 0.75)
    ActionChains(opened).move_to_element_with_offset(frame, -quarter, -20).click().perform()
    check_split(opened, 0.25)
    ActionChains(opened).drag_and_drop_by_offset(element(opened, ".compare .handle"), -quarter - 10, 0).perform()
    check_split(opened, 0)


@pytest.mark.parametrize("size", PHONES)
def test_the_slider_moves_by_touch(opened: Any, size: tuple[int, int]) -> None:
    as_phone(opened, size)
    box = opened.execute_script(
        "const frame = document.querySelector('.frame'); frame.scrollIntoView({block: 'center'}); const box = frame.getBoundingClientRect(); return [box.left, box.top, box.width, box.height];"
    )
    touch(opened, [(box[0] + share * box[2], box[1] + 0.3 * box[3]) for share in (0.5, 0.6, 0.7, 0.8)])
    check_split(opened, 0.8)


def touch(driver: Any, points: list[tuple[float, float]]) -> None:
    """A finger that goes down at the first point, along the others, and up."""
    for index, (x, y) in enumerate(points):
        kind = "touchMove" if index else "touchStart"
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


# ---- zoom


def test_zoom_by_buttons_and_keys(opened: Any) -> None:
    assert state(opened)["zoom"] == pytest.approx(1, abs=0.01)
    for _ in range(2):
        element(opened, ".compare [data-zoom=in]").click()
    found = state(opened)
    assert found["zoom"] == pytest.approx(4, rel=0.02) and found["left"] > 0 and found["top"] > 0  # around the centre
    check_split(opened, 0.5)
    assert element(opened, ".compare output").text.endswith("%")
    element(opened, ".compare [data-zoom=out]").click()
    assert state(opened)["zoom"] == pytest.approx(2, rel=0.02)
    element(opened, ".compare [data-zoom=fit]").click()
    assert state(opened)["zoom"] == pytest.approx(1, abs=0.01) and element(opened, ".compare output").text == "fit"
    for keys, zoom in (("+++", 8), ("-", 4), ("0", 1), ("-", 1), ("++++++", 16)):
        assert press(opened, ".compare .scroller", keys)["zoom"] == pytest.approx(zoom, rel=0.02)


def test_a_zoomed_picture_moves_under_the_border(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    press(opened, ".compare .scroller", "++")
    before = state(opened)
    frame = element(opened, ".compare .frame")
    ActionChains(opened).move_to_element_with_offset(frame, 60, 60).click_and_hold().move_by_offset(-80, -50).release().perform()
    after = state(opened)
    assert (after["left"] - before["left"], after["top"] - before["top"]) == (pytest.approx(80, abs=2), pytest.approx(50, abs=2))
    check_split(opened, 0.5)
    press(opened, ".compare .scroller", *[Keys.ARROW_LEFT] * 3)
    opened.execute_async_script("setTimeout(arguments[0], 300)")
    assert state(opened)["left"] < after["left"]
    press(opened, ".compare input", Keys.HOME)
    check_split(opened, 0)


def test_double_click_and_wheel_zoom_where_the_pointer_is(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    frame = element(opened, ".compare .frame")
    ActionChains(opened).move_to_element_with_offset(frame, -frame.size["width"] // 4, 0).double_click().perform()
    found = state(opened)
    width = opened.execute_script("return document.querySelector('.scroller').clientWidth")
    assert found["zoom"] == pytest.approx(4, rel=0.02)
    assert (found["left"] + width / 4) / (4 * width) == pytest.approx(0.25, abs=0.01)
    ActionChains(opened).move_to_element_with_offset(frame, 0, 0).double_click().perform()
    assert state(opened)["zoom"] == pytest.approx(1, abs=0.01)
    box = frame.rect
    opened.execute_script(
        "document.querySelector('.frame').dispatchEvent(new WheelEvent('wheel', {deltaY: -100, ctrlKey: true, clientX: arguments[0], clientY: 300, cancelable: true}))",
        box["x"] + 10,
    )
    assert state(opened)["zoom"] == pytest.approx(1.25, rel=0.02)


# ---- where it is read


def as_phone(driver: Any, size: tuple[int, int]) -> None:
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    driver.refresh()


@pytest.mark.parametrize("size", PHONES)
def test_nothing_is_wider_than_a_phone(opened: Any, size: tuple[int, int]) -> None:
    as_phone(opened, size)
    # Against the phone's width, not innerWidth: a phone zooms out until the widest element fits, and calls that its width.
    wide = opened.execute_script(
        """
        const inside = (one) => one.closest(".scroll, .scroller, svg") !== null;
        return [...document.querySelectorAll("body *")].filter((one) => !inside(one) && one.getBoundingClientRect().right > arguments[0] + 0.5)
            .map((one) => one.outerHTML.slice(0, 80));""",
        size[0],
    )
    assert wide == [] and opened.execute_script("return document.documentElement.scrollWidth") <= size[0]
    small = opened.execute_script(
        "return [...document.querySelectorAll('button, .handle')].filter((one) => Math.min(one.offsetWidth, one.offsetHeight) < 36).length"
    )
    assert small == 0  # what a finger has to meet


def test_light_and_dark(opened: Any) -> None:
    def luminance(selector: str, name: str) -> float:
        colour = opened.execute_script(
            "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
        )
        return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / (3 * 255)

    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        ground = luminance("body", "backgroundColor")
        assert (ground > 0.9) if scheme == "light" else (ground < 0.15)
        for selector, name in (
            ("body", "color"),
            (".chart text", "fill"),
            (".question", "color"),
            ("a", "color"),
            (".passed .result", "color"),
        ):
            assert abs(luminance(selector, name) - ground) > 0.3, (scheme, selector)


def test_print(opened: Any, tmp_path: Path) -> None:
    data = opened.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})["data"]
    assert base64.b64decode(data).startswith(b"%PDF") and len(data) > 50_000
    folded = "return [...document.querySelectorAll('details')].map((one) => one.open)"
    before = opened.execute_script(folded)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    shown = opened.execute_script("""
        const box = (selector) => document.querySelector(selector).getBoundingClientRect();
        const [before, after] = [box(".before img"), box(".after img")];
        return {beside: before.right <= after.left + 1 && before.width > 50, clip: getComputedStyle(document.querySelector(".before")).clipPath,
                controls: document.querySelector(".controls").checkVisibility(), nav: document.querySelector("nav").checkVisibility(),
                unfolded: [...document.querySelectorAll("details")].every((one) => one.open)};""")
    assert shown == {"beside": True, "clip": "none", "controls": False, "nav": False, "unfolded": True}
    opened.execute_script("dispatchEvent(new Event('afterprint'))")
    assert opened.execute_script(folded) == before and False in before


def test_the_page_opens_with_the_verdict_and_the_pictures(opened: Any) -> None:
    """On the first screen: the verdict, what failed, and the first picture; questions without a failed check are folded."""
    assert element(opened, ".verdict").text.startswith("NOT passed: 1 passed, 1 FAILED")
    places = opened.execute_script("""
        return [".verdict", ".failed li", "#photos .frame", "#checks"].map((one) => document.querySelector(one).getBoundingClientRect().top);""")
    assert places == sorted(places) and places[2] < 900
    families = opened.execute_script("""
        return Object.fromEntries([...document.querySelectorAll("#checks details")].map((one) =>
            [one.querySelector("summary code").textContent, [one.open, one.querySelector("table").checkVisibility()]]));""")
    assert families == {"network": [True, True], "round-trip": [False, False], "backend": [False, False]}


def test_a_folded_question_is_opened_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    element(opened, "#checks details:not([open]) summary").send_keys(Keys.ENTER)
    assert opened.execute_script("return document.querySelectorAll('#checks details[open]').length") == 2


def test_without_scripts_both_pictures_stand_side_by_side(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened.refresh()
        before, after = (element(opened, f".compare {side} img").rect for side in (".before", ".after"))
    finally:
        opened.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert before["x"] + before["width"] <= after["x"] and before["width"] == after["width"] > 100 and before["y"] == after["y"]


def test_readers_that_see_no_pictures_get_a_name_for_everything(opened: Any) -> None:
    tree = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    found: dict[str, list[str]] = {}
    for node in tree:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("image", "slider", "button", "link", "heading", "table", "region", "navigation"):
        assert found.get(role) and all(found[role]), (role, found.get(role))
    assert len(found["slider"]) == 4 and len(found["button"]) == 12
    assert {"check", "value", "limit", "reason of the limit", "result", "detail"} <= set(found["columnheader"])
