from __future__ import annotations

import math

import pytest

from partwise.experiment.runs import read_run
from partwise.experiment.spans import Span, Use, gini, read_commits, read_spans, shares, uses
from toy_runs import curve, write_run

SPANS = [(3, 0.0, 1.0, 4.0, 6.0), (5, 0.0, 0.5, 9.0, 9.5), (3, 6.0, 7.5, 11.0, 12.0)]
LOST = [(5, "train", 10.0, 13.0), (7, "download", 2.0, 2.25)]


@pytest.fixture
def folder(tmp_path):
    commits = [(6.0, [3], [0]), (12.0, [3, 5], [0, 1]), (14.0, [3], [0])]
    return write_run(tmp_path / "run", curve(0.01, 10), spans=SPANS, lost=LOST, commits=commits)


def test_they_are_read_by_when_they_began(folder):
    assert read_spans(folder) == [
        Span(3, 100, 0.0, 1.0, 4.0, 6.0),
        Span(5, 101, 0.0, 0.5, 9.0, 9.5),
        Span(7, 201, 2.0, 2.0, 2.0, 2.25, "download"),
        Span(3, 102, 6.0, 7.5, 11.0, 12.0),
        Span(5, 200, 10.0, 10.0, 10.0, 13.0, "train"),
    ]
    assert [(c.version, c.time, c.clients, c.staleness) for c in read_commits(folder)] == [
        (1, 6.0, [3], [0]), (2, 12.0, [3, 5], [0, 1]), (3, 14.0, [3], [0]),
    ]  # fmt: skip


def test_refused_replies_are_lost_too(tmp_path):
    run = write_run(tmp_path / "run", curve(0.01, 10), troubles=[("refused", 4, 2, "", "nan")])
    assert read_spans(run) == [Span(4, -1, 1.0, 1.0, 1.0, 1.0, "refused")]


def test_where_time_went(folder):
    """Client 3 was busy all of its first 12 s of 20; client 5's loss counts until it was noticed."""
    run = read_run(folder)
    mean, three, five, seven = uses(run.spans, 20.0)
    assert three == Use(3, 2, 2.5, 6.5, 3.0, 0.0, 8.0)
    assert five == Use(5, 2, 0.5, 8.5, 0.5, 3.0, 7.5)
    assert seven == Use(7, 1, 0.0, 0.0, 0.0, 0.25, 19.75)
    assert mean == pytest.approx((-1, 5 / 3, 1.0, 5.0, 3.5 / 3, 3.25 / 3, 35.25 / 3))
    assert uses([], 20.0) == []


def test_tasks_that_overlap_are_busy_once():
    """A client that is asked again while its late reply is on its way."""
    spans = [Span(1, 0, 0.0, 1.0, 2.0, 8.0), Span(1, 1, 5.0, 6.0, 6.5, 7.0), Span(1, 2, 7.5, 8.0, 8.5, 10.0)]
    (_, use) = uses(spans, 11.0)
    assert (use.download, use.train, use.upload, use.idle) == (2.5, 2.0, 8.0, 1.0)


def test_a_client_that_is_asked_at_work_trains_in_turn(tmp_path):
    """It had what it trains at 2 and 5, while it was training until 4 and 7; replies leave when the next begins."""
    spans = [(1, 0.0, 1.0, 4.0, 5.5), (1, 0.5, 2.0, 7.0, 10.0), (1, 5.5, 9.0, 12.0, 13.0), (2, 0.0, 1.0, 4.0, 5.0)]
    found = read_spans(write_run(tmp_path / "run", curve(0.01, 10), spans=spans))
    assert [span.stages for span in found if span.client == 1] == [
        ((0.0, 1.0), (1.0, 4.0), (4.0, 5.5)),
        ((0.5, 2.0), (4.0, 7.0), (9.0, 10.0)),
        ((5.5, 9.0), (9.0, 12.0), (12.0, 13.0)),
    ]
    one = uses(found, 15.0)[1]
    assert (one.download, one.train, one.upload, one.idle) == (6.0, 9.0, 3.5, 2.0)
    assert [span.started for span in found if span.client == 2] == [None]


def test_how_evenly(folder):
    assert shares(read_commits(folder), 6) == [0, 0, 0, 0, 1, 3]
    x = [0, 0, 0, 0, 1, 3]
    pairs = sum(abs(a - b) for a in x for b in x)
    assert gini(x) == pytest.approx(pairs / (2 * len(x) ** 2 * (sum(x) / len(x))))  # half the mean difference
    assert math.isnan(gini([0, 0]))
