"""Takes the picture of a report for the documentation, with headless Chromium.

    mgvq-export verify bundle --report report.html
    python tools/report_screenshot.py report.html docs/report.jpg

Needs Chromium, its driver and selenium.
"""

import base64
import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

WIDTH, SCALE, GAP = 1160, 0.75, 16
#: Selectors of what the picture shows, each from the top of the first to the bottom of the second.
PARTS = (("header", ".photo .groups"), ("#checks", "#checks details:last-of-type"), ("#tiling", "#tiling .pictures"))


def main() -> None:
    page, target = map(Path, sys.argv[1:])
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        metrics = {"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.resolve().as_uri())
        shots = [shot(driver, first, last) for first, last in PARTS]
    finally:
        driver.quit()
    picture = Image.new("RGB", (shots[0].width, sum(one.height + GAP for one in shots) - GAP), "#c8ccd2")
    top = 0
    for one in shots:
        picture.paste(one, (0, top))
        top += one.height + GAP
    picture.save(target, quality=85, optimize=True)
    print(f"{target}  {picture.width}x{picture.height}  {target.stat().st_size / 1000:.0f} kB")


def shot(driver: webdriver.Chrome, first: str, last: str) -> Image.Image:
    """The page from the top of one element to the bottom of another, over its whole width."""
    top, bottom = driver.execute_script(
        "const box = (one) => document.querySelector(one).getBoundingClientRect();"
        "return [box(arguments[0]).top + scrollY, box(arguments[1]).bottom + scrollY];",
        first,
        last,
    )
    clip = {"x": 0, "y": max(0, top - 8), "width": WIDTH, "height": bottom - top + 9, "scale": SCALE}
    data = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


if __name__ == "__main__":
    main()
