"""What is shown of a run, as an SVG file, inside a page, and in letters."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from partwise.core.errors import DataError
from partwise.experiment.runs import read_run
from partwise.experiment.timeline import timeline_of
from partwise.experiment.timeline_svg import timeline_svg
from partwise.experiment.timeline_text import timeline_text
from toy_runs import NASTY, POPULATION, curve, write_run

COLOURS = ("#0072b2", "#3d9fd6", "#d08f00")  # training, download, upload
SVG = "{http://www.w3.org/2000/svg}"
# (client, began, fetched, trained, arrived); a round takes 10 s
SPANS = [
    (0, 0.0, 2.0, 6.0, 10.0),
    (1, 0.0, 1.0, 2.0, 3.0),
    (0, 10.0, 12.0, 16.0, 20.0),
    (1, 10.0, 11.0, 12.0, 13.0),
    (3, 20.0, 22.0, 26.0, 30.0),
    (1, 20.0, 21.0, 22.0, 23.0),
]
LOST = [(2, "train", 10.0, 15.0), (3, "upload", 0.0, 8.0), (2, "deadline", 20.0, 29.0)]
COMMITS = [(10.0, [0, 1], [0, 0]), (20.0, [0, 1], [0, 0]), (30.0, [3, 1], [0, 0])]


@pytest.fixture
def run(tmp_path):
    points = [(v, 10.0 * v, v, v, 0.5) for v in range(4)]
    folder = write_run(tmp_path / "run", points, spans=SPANS, lost=LOST, commits=COMMITS, population=POPULATION)
    return read_run(folder)


def test_all_of_it(run):
    found = timeline_of(run)
    assert [(line.client, line.name, len(line.spans)) for line in found.lines] == [
        (0, "ab", 2), (1, "cd", 3), (2, "ef", 2), (3, NASTY, 2),
    ]  # fmt: skip
    assert (found.begin, found.end, found.run_end) == (0.0, 30.0, 30.0)
    assert found.commits == [10.0, 20.0, 30.0]
    assert found.note() == ""


def test_who_was_asked_most_often_and_who_is_left_out(run):
    found = timeline_of(run, rows=2)
    assert [line.client for line in found.lines] == [0, 1]  # of those asked twice, the lowest
    assert found.note() == "Shown: 2 of the 4 clients that were asked; 2 are left out."
    assert [line.client for line in timeline_of(run, clients=[3, 1]).lines] == [1, 3]


def test_a_stretch(run):
    found = timeline_of(run, begin=11.0, end=19.0)
    assert [(line.client, len(line.spans)) for line in found.lines] == [(0, 1), (1, 1), (2, 1)]
    assert found.commits == []
    assert found.note() == "Shown: from 11.0 s to 19.0 s of 30.0 s."
    assert timeline_of(run, end=19.0).note() == "Shown: the first 19.0 s of 30.0 s."


def test_moments_of_a_short_stretch_late_in_a_long_run_can_be_told_apart(tmp_path):
    late = 1_000_000.0  # 11.574074 days
    spans = [(1, late - 50, late - 40, late, late + 10), (1, late + 10, late + 11, late + 12, late + 30)]
    found = timeline_of(read_run(write_run(tmp_path / "run", curve(0.01, 5), spans=spans)), begin=late, end=late + 20)
    assert found.note() == "Shown: from 11.5741 days to 11.5743 days of 11.6 days."
    for said in (timeline_text(found), timeline_svg(found)):
        ticks = re.findall(r"[>╵]([\d.]+ days)", said)
        assert "11.57407 days" in ticks
        assert len(ticks) == len(set(ticks)) > 2


def test_what_cannot_be_told_apart_is_cut(tmp_path):
    spans = [(c, t, t + 0.1, t + 0.2, t + 0.5) for t in range(100) for c in (1, 4)]
    run = read_run(write_run(tmp_path / "run", curve(0.01, 5), spans=spans))
    found = timeline_of(run)
    assert found.end == 40.0  # so many tasks a row
    assert sum(len(line.spans) for line in found.lines) == 80
    assert found.note().startswith("Shown: the first 40.0 s of 6.00 min")
    assert timeline_of(run, end=99.0).end == 99.0


def test_nothing_to_show(tmp_path, run):
    still = read_run(write_run(tmp_path / "still", curve(0.01, 5), spans=[(1, 2.0, 2.0, 2.0, 2.0)]))
    with pytest.raises(LookupError, match=r"the clients of 'still' took no time\. Give them a pace and links"):
        timeline_of(still)
    with pytest.raises(LookupError, match=r"no client of 'run' had a task meanwhile"):
        timeline_of(run, clients=[9])
    with pytest.raises(LookupError, match=r"no client of 'run' had a task meanwhile\. Choose others, or other moments"):
        timeline_of(run, begin=30.0)  # the moment at which the last reply came
    for wrong in ({"rows": 0}, {"begin": -1.0}, {"begin": 5.0, "end": 5.0}):
        with pytest.raises(DataError, match=r"needs a row at least and a stretch that ends after it begins"):
            timeline_of(run, **wrong)


def test_transfers_beside_training_have_a_lane_of_their_own(tmp_path):
    spans = [(1, 0.0, 10.0, 40.0, 50.0), (1, 0.0, 10.0, 70.0, 80.0), (1, 50.0, 60.0, 100.0, 110.0)]
    found = timeline_of(read_run(write_run(tmp_path / "run", curve(0.01, 110), spans=spans)), end=110.0)
    first, below = timeline_text(found, width=120).splitlines()[1:3]
    assert first[10:120] == "·" * 10 + "█" * 90 + "·" * 10
    assert below[10:120] == "░" * 10 + "·" * 30 + "▒" * 10 + "░" * 10 + "·" * 10 + "▒" * 10 + "·" * 20 + "▒" * 10
    places = {}
    for path in ET.fromstring(timeline_svg(found)).iter(f"{SVG}path"):
        places.setdefault(path.get("fill"), path.get("d"))  # the legend is last
    lanes = {colour: re.match(r"M[\d.]+ ([\d.]+)h[\d.]+v([\d.]+)", places[colour]).groups() for colour in COLOURS}
    training, download, upload = ([float(number) for number in lanes[colour]] for colour in COLOURS)
    assert download == upload
    assert training[0] + training[1] < download[0]


# As a picture


def bars(root, colour):
    """(left, width) of the bars in a colour."""
    return [
        (float(x), float(width))
        for path in root.iter(f"{SVG}path")
        if path.get("fill") == colour and path.get("transform") is None
        for x, width in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)v", path.get("d"))
    ]


def test_a_file_of_its_own(run):
    text = timeline_svg(timeline_of(run))
    root = ET.fromstring(text)
    width = (920 - 128 - 16) / 30
    assert bars(root, "#0072b2") == [  # training, client by client
        pytest.approx((128 + begin * width, length * width), abs=0.02)
        for begin, length in ((2, 4), (12, 4), (1, 1), (11, 1), (21, 1), (22, 4))
    ]
    assert len(bars(root, "#3d9fd6")) == len(bars(root, "#d08f00")) == 6
    assert bars(root, "#8c959f") == [  # lost
        pytest.approx((128 + begin * width, length * width), abs=0.02) for begin, length in ((10, 5), (20, 9), (0, 8))
    ]
    words = [t.text for t in root.iter(f"{SVG}text")]
    names = ["ab", "cd", "ef", f"{NASTY[:15]}…"]
    assert [word for word in words if word in names] == names
    assert words[-7:] == [
        "download", "training", "upload", "a version", "lost in training", "lost in upload", "given up",
    ]  # fmt: skip
    assert [word for word in words if word.endswith(" s")] == ["5 s", "10 s", "15 s", "20 s", "25 s", "30 s"]
    assert "prefers-color-scheme: dark" in text
    assert "var(" not in text  # so that programs show it which know no variables


def test_inside_a_page(run):
    text = timeline_svg(timeline_of(run), inline=True)
    ET.fromstring(text)
    assert "style>" not in text
    assert "fill:var(--run-0)" in text
    assert not re.search(r"#[0-9a-f]{6}", text)


def test_too_many_versions_are_ticks(tmp_path):
    spans = [(1, t, t + 0.25, t + 0.5, t + 1.0) for t in range(200)]
    commits = [(t + 1.0, [1], [0]) for t in range(200)]
    run = read_run(write_run(tmp_path / "run", curve(0.01, 5), spans=spans, commits=commits))
    few, many = (timeline_svg(timeline_of(run, end=end)) for end in (100.0, 200.0))
    heights = [
        {float(b) - float(a) for a, b in re.findall(r"M[\d.]+ ([\d.]+)V([\d.]+)", path)}
        for path in (re.search(r'd="([^"]*)" class="s-ink"[^>]*opacity=".55"', text)[1] for text in (few, many))
    ]
    assert heights == [{26.0}, {7.0}]


def test_in_letters(run):
    """A letter stands for a second."""
    assert timeline_text(timeline_of(run), 48).splitlines() == [
        "versions                    │         │        │",
        "ab                ░░████▒▒▒▒░░████▒▒▒▒··········",
        "cd                ░█▒·······░█▒·······░█▒·······",
        "ef                ··········-----×····---------×",
        f"{NASTY[:15]}…  --------×···········░░████▒▒▒▒",
        "                  ╵0        ╵10 s     ╵20 s     ╵30 s",
        "░ download  █ training  ▒ upload  · idle  -× lost",
    ]
    narrow = timeline_text(timeline_of(run, clients=[1], begin=9.0, end=24.0), 1).splitlines()
    assert narrow[0] == "versions    │                   │"
    assert narrow[1] == "cd        ··░░██▒▒··············░░██▒▒··"
    assert narrow[-1] == "Shown: from 9.00 s to 24.0 s of 30.0 s, 1 of the 4 clients that were asked; 3 are left out."


def test_many_versions_in_one_place(tmp_path):
    commits = [(1.0 + 0.001 * at, [1], [0]) for at in range(12)] + [(9.5, [1], [0]), (9.6, [1], [0])]
    run = read_run(write_run(tmp_path / "run", [(0, 0, 0, 0, 1.0)], spans=[(1, 0, 1, 9, 10)], commits=commits))
    text = timeline_text(timeline_of(run), 40)
    assert text.splitlines()[0] == "versions     +                        2"
