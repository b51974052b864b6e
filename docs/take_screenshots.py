"""Takes the pictures of the page again: a run is made, and looked at in Chromium while it goes on.

pip install 'partwise[page]' playwright
python docs/take_screenshots.py --chromium /usr/bin/chromium
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

PICTURES = Path(__file__).parent / "how-to" / "pictures"
SPEC = """\
name = "sensors"
seed = 3
[workload]
name = "LeafSynthetic"
num_clients = 60
[workload.profiles]
name = "LogNormal"
[workload.reliability]
name = "Unreliable"
train = 0.04
notice_seconds = 20.0
[algorithm]
name = "FedAvg"
[scheduler]
name = "FedBuff"
buffer = 5
concurrency = 20
versions = 1500
"""
VERSIONS = 400  # that the run has made when it is looked at
WIDE, TALL, NARROW = ({"width": w, "height": h} for w, h in ((1200, 1140), (1100, 1270), (390, 844)))


@contextlib.contextmanager
def started(*command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A command of Partwise while it runs."""
    process = subprocess.Popen([sys.executable, "-m", "partwise", *command], cwd=folder, stdout=-1, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def reached(address: str, version: int) -> None:
    """Wait for a version."""
    while True:
        with urllib.request.urlopen(f"{address}run") as answer:
            if json.load(answer)["run"]["version"] >= version:
                return
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", help="the browser; Playwright's own by default")
    parser.add_argument("--out", type=Path, default=PICTURES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sensors.toml").write_text(SPEC)
        with started("run", "sensors.toml", "--quiet", "--folder", "runs/sensors", folder=folder):
            while not (folder / "runs" / "sensors" / "record.sqlite").exists():
                time.sleep(0.1)
            with started("page", "runs/sensors", "--port", "0", folder=folder) as page:
                address = next(word for word in page.stdout.readline().split() if word.startswith("http"))
                reached(address, VERSIONS)
                take(address, options.out, options.chromium)


def take(address: str, out: Path, chromium: str | None) -> None:
    """The pictures: the whole at a glance, its clients in the dark, and a telephone."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        for name, scheme, size in (("light", "light", WIDE), ("dark", "dark", TALL), ("narrow", "light", NARROW)):
            tab = browser.new_page(viewport=size, color_scheme=scheme)
            tab.goto(address)
            tab.wait_for_selector("#figure-staleness path")
            if name == "light":
                tab.focus("#figure-metric svg")
                tab.keyboard.press("ArrowLeft")
            if name == "dark":
                tab.click("th button:text('staleness')")
                tab.wait_for_selector("th[aria-sort=descending]:has-text('staleness')")
                tab.evaluate("document.querySelector('#clients').scrollIntoView()")
            path = out / f"page-{name}.png"
            tab.screenshot(path=path)
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
