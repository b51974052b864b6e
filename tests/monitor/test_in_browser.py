"""The page in Chromium. It needs Playwright and a browser: PARTWISE_CHROMIUM names one, or one is on the path."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import partwise
from partwise.experiment.store import RunStore
from toy_runs import full_run

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.environ.get("PARTWISE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
SOURCE = {**os.environ, "PYTHONPATH": str(Path(partwise.__file__).parents[1])}
EVIL = "<img src=x onerror='window.hacked=1'><script>window.hacked=2</script>\"'`&amp;${window.hacked=3}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; name one by PARTWISE_CHROMIUM"),
]

# Of everything that has text of its own: its contrast with what is behind it, by WCAG 2.2, if below the 4.5 asked for.
CONTRAST = """() => {
  const light = (c) => { const [r, g, b] = c.match(/[\\d.]+/g).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$|transparent/.test(c)) return c; } return "rgb(255, 255, 255)"; };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.tagName === "SCRIPT") continue;
    const style = getComputedStyle(e), ink = e instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(ink), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${e.tagName} ${e.className} ${e.textContent.slice(0, 30)} ${ink}`);
  }
  return found;
}"""


@contextmanager
def shown(folder):
    """The page's address, while it is served."""
    command = [sys.executable, "-m", "partwise", "page", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=SOURCE)
    try:
        yield process.stdout.readline().split(" is shown at ")[1].split()[0], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def tab(browser):
    """A tab that knows what went wrong in it, and where it went."""
    found = browser.new_page(viewport={"width": 1200, "height": 900})
    found.faults, found.asked = [], []
    found.on("console", lambda message: message.type in ("error", "warning") and found.faults.append(message.text))
    found.on("pageerror", lambda error: found.faults.append(str(error)))
    found.on("request", lambda request: found.asked.append(request.url))
    yield found
    found.close()


@pytest.fixture
def run(tmp_path):
    meta = {"status": "done", "versions": 12, "guarantee": "(8, 1e-5)-DP of a client"}
    folder = full_run(tmp_path / "a", 0.02, 1000, meta=meta)
    with RunStore(folder) as store:
        store.append_metrics([(12, 360.0, 9, 9, "epsilon", "privacy", 1.5)])
    return folder


def text(tab, selector):
    return tab.inner_text(selector)


def until(tab, selector, said):
    sync_api.expect(tab.locator(selector)).to_contain_text(said, timeout=60_000)


def test_a_finished_run(tab, run):
    with shown(run) as (address, _):
        tab.goto(address)
        until(tab, "#status", "done")
        tiles = text(tab, "#tiles")
        assert "0.740" in tiles
        assert "ε = 1.500" in tiles
        assert text(tab, "#left") == "12 of 12 rounds"
        assert tab.locator("#figures figure").count() == 5
        assert tab.title() == "round 12/12 · a"
        assert tab.locator("#lines tr").count() == 4
        assert all(url.startswith((address, "data:")) for url in tab.asked)
        assert tab.faults == []


def test_nothing_that_comes_from_the_run_becomes_markup(tab, tmp_path):
    population = {"names": [EVIL], "numbers": None, "clients": 1}
    folder = full_run(tmp_path / "evil", 0.02, 1000)
    (folder / "population.json").write_text(json.dumps(population))
    with RunStore(folder) as store:
        store.set_meta(name=EVIL, status=f"DivergedError: {EVIL}", guarantee=EVIL, algorithm=EVIL, metric=EVIL)
        store.append_metrics([(v, 1.0 * v, 9, 9, EVIL, "pooled", 0.5) for v in range(3)])
        body = {"client": 0, "version": 1, "stage": EVIL, "reason": EVIL, "traceback": EVIL}
        store.append_events([(1.0, "lost", body), (1.0, "node", {"node": EVIL, "is_there": True, "clients": 1})])
    with shown(folder) as (address, _):
        tab.goto(address)
        until(tab, "#incidents", EVIL)
        tab.click("#incidents summary >> nth=0")
        tab.locator("#figure-metric svg").focus()
        tab.keyboard.press("End")
        for place in ("#name", "#fault", "#tiles", "#figures", "#lines", "#nodes", "#incidents pre", "#about"):
            assert EVIL in text(tab, place), place
        assert tab.evaluate("window.hacked") is None
        assert tab.locator("main img, main script, main [onerror]").count() == 0
        assert tab.faults == []


def test_it_goes_on_with_the_run(tab, run):
    with shown(run) as (address, _):
        tab.goto(address)
        until(tab, "#status", "done")
        with RunStore(run) as store:
            store.set_meta(status="running")
            store.append_metrics([(13, 400.0, 20_000, 9, "auc", "pooled", 0.875)])
            store.append_events(
                [(400.0, "lost", {"client": 1, "version": 12, "stage": "train", "reason": "gone away"})]
            )
            store.commit()
            until(tab, "#status", f"running (pid {os.getpid()})")
            until(tab, "#tiles", "0.875")
            until(tab, "#incidents", "gone away")
        until(tab, "#status", "killed; can be resumed")


def test_a_folder_that_goes_and_a_server_that_ends(tab, run, tmp_path):
    with shown(run) as (address, process):
        tab.goto(address)
        until(tab, "#status", "done")
        shutil.move(run, tmp_path / "b")
        until(tab, "#fault", "there must be a run's record.sqlite, got no folder")
        assert text(tab, "#name") == "a"  # what was known stays
        shutil.move(tmp_path / "b", run)
        sync_api.expect(tab.locator("#fault")).to_be_hidden(timeout=60_000)
        process.kill()
        until(tab, "#written", "does not answer; trying again")


def test_by_keyboard(tab, run):
    with shown(run) as (address, _):
        tab.goto(address)
        until(tab, "#status", "done")
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.locator("#figure-metric svg").focus()
        tab.keyboard.press("Home")
        assert text(tab, "#figure-metric figcaption") == "round 0: 0.500"
        tab.keyboard.press("ArrowRight")
        assert text(tab, "#figure-metric figcaption") == "round 2: 0.540"
        tab.keyboard.press("Escape")
        assert text(tab, "#figure-metric figcaption") == "by round"
        tab.locator('input[value="seconds"]').focus()
        tab.keyboard.press("ArrowRight")
        assert text(tab, "#figure-metric figcaption") == "by bytes up and down"
        tab.locator("th button", has_text="replies").focus()
        tab.keyboard.press("Enter")
        sync_api.expect(tab.locator("th[aria-sort=descending]")).to_have_text("replies")
        until(tab, "#lines tr:first-child", "ab")
        tab.fill("#find", "cd")
        sync_api.expect(tab.locator("#lines tr")).to_have_count(1)
        tab.select_option("#metric", "auc/p10")
        until(tab, "#figure-metric h3", "AUC, p10")
        assert tab.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(browser, run, scheme):
    with shown(run) as (address, _), browser.new_context(color_scheme=scheme) as context:
        tab = context.new_page()
        tab.goto(address)
        until(tab, "#status", "done")
        assert tab.evaluate(CONTRAST) == []
        unnamed = "input:not([aria-label]), select:not([aria-label])"
        assert tab.evaluate(f"[...document.querySelectorAll('{unnamed}')].filter((e) => !e.labels.length).length") == 0
        assert tab.evaluate("[...document.querySelectorAll('svg')].every((e) => e.getAttribute('aria-label'))")


def test_it_fits_a_telephone(tab, run):
    tab.set_viewport_size({"width": 360, "height": 740})
    with shown(run) as (address, _):
        tab.goto(address)
        until(tab, "#status", "done")
        assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_what_stands_beside_an_axis_is_whole_and_tells_values_apart(tab, tmp_path):
    """Losses near 1e-9, near 1e300, and near a hundred million of which only the last of nine digits differ."""
    for values in ([1e-9, 8e-9], [0.0, 1e300], [123456789.0, 123456795.0]):
        folder = tmp_path / f"{values[1]:g}"
        with RunStore(folder) as store:
            store.set_meta(name="a", metric="loss", higher_is_better=False, status="done")
            store.append_metrics([(v, float(v), v, v, "loss", "central", value) for v, value in enumerate(values, 1)])
        with shown(folder) as (address, _):
            tab.goto(address)
            words = tab.locator("#figure-metric svg text[text-anchor=end]")
            words.first.wait_for()
            left = tab.locator("#figure-metric svg").bounding_box()["x"]
            boxes = [words.nth(at).bounding_box() for at in range(words.count())]
            assert all(box["x"] >= left for box in boxes)
            texts = words.all_text_contents()
            assert len(texts) == len(set(texts)) > 2


def test_a_clock_of_less_than_a_second_has_its_unit(tab, tmp_path):
    folder = tmp_path / "quick"
    with RunStore(folder) as store:
        store.set_meta(name="quick", metric="loss", status="done")
        store.append_metrics([(v, v / 10, v, v, "loss", "central", 1.0 / (1 + v)) for v in range(7)])
    with shown(folder) as (address, _):
        tab.goto(address)
        until(tab, "#status", "done")
        tab.check("input[value=seconds]")
        below = tab.locator("#figure-metric svg text:not([text-anchor=end])").all_text_contents()
        assert below[0] == "0"
        assert all(text.endswith(" s") for text in below[1:])
