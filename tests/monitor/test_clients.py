from __future__ import annotations

import json
import math
import random

import pytest

from partwise.experiment.rows import ReplyRow
from partwise.experiment.store import RunStore
from partwise.monitor.clients import ORDERS, Names, Tallies
from toy_runs import NASTY, POPULATION


@pytest.fixture
def names(tmp_path):
    (tmp_path / "population.json").write_text(json.dumps(POPULATION))
    return Names(tmp_path)


def replies(count, clients, seed=3):
    r = random.Random(seed)
    return [
        ReplyRow(
            version=1 + at // 3,
            client=r.choice(clients),
            id=at,
            steps=5,
            examples=7,
            uplink_bytes=r.randrange(1000),
            downlink_bytes=r.randrange(3000),
            began=float(at),
            fetched=at + 0.25,
            trained=at + 0.5,
            arrived=at + 0.75,
            loss=math.nan if at % 5 == 4 else at / 8,
            staleness=r.randrange(6),
        )
        for at in range(count)
    ]


def test_tallies_are_those_of_plain_loops_however_the_rows_come(tmp_path):
    rows = replies(200, [7, 2, 900_000, 31, 5])
    with RunStore(tmp_path) as store:
        store.append_replies(rows)
        tallies = Tallies()
        for after, until in ((0, 1), (1, 64), (64, 64), (64, 199), (199, 200)):
            tallies.add_replies(store.replies_between(after, until))
    lines = {line.client: line for line in tallies.lines(Names(tmp_path), "number")}
    assert list(lines) == [2, 5, 7, 31, 900_000]
    for client, line in lines.items():
        own = [row for row in rows if row.client == client]
        last = own[-1]
        assert line.replies == len(own)
        assert line.uplink == sum(row.uplink_bytes for row in own)
        assert line.downlink == sum(row.downlink_bytes for row in own)
        assert line.mean_staleness == pytest.approx(sum(row.staleness for row in own) / len(own), rel=1e-15)
        assert (line.version, line.staleness, line.seconds) == (last.version, last.staleness, last.arrived)
        assert line.loss == last.loss or (math.isnan(line.loss) and math.isnan(last.loss))
        assert line.name == f"client {client}"


def test_what_a_client_takes():
    assert Tallies()._rows.itemsize + Tallies()._numbers.itemsize == 88


def test_trouble_counts_each_time(names):
    tallies = Tallies()
    tallies.add_trouble("lost", [3, 1, 3])
    tallies.add_trouble("refused", [3])
    tallies.add_trouble("lost", [])
    found = {line.client: (line.lost, line.refused, line.replies, line.seconds) for line in tallies.lines(names)}
    assert [(c, v[:3]) for c, v in found.items()] == [(1, (1, 0, 0)), (3, (2, 1, 0))]
    assert all(math.isnan(v[3]) for v in found.values())


def test_order_and_length(names):
    tallies = Tallies()
    tallies.add_replies(
        [
            (
                0,
                2,
                50,
                10,
                8,
                1,
                4,
                9.0,
                8,
                0.5,
            ),  # client, replies, up, down, stale, row, version, arrived, staleness, …
            (1, 7, 20, 30, 0, 2, 5, 7.0, 0, 0.5),
            (2, 1, 90, 20, 3, 3, 6, 8.0, 3, 0.5),
        ]
    )
    tallies.add_trouble("lost", [1, 1, 3])
    tallies.add_trouble("refused", [2])
    order = {o: [line.client for line in tallies.lines(names, o)] for o in ORDERS}
    assert order == {
        "recent": [0, 2, 1, 3],
        "number": [0, 1, 2, 3],
        "replies": [1, 0, 2, 3],
        "lost": [1, 3, 0, 2],
        "refused": [2, 0, 1, 3],
        "staleness": [0, 2, 1, 3],
        "uplink": [2, 0, 1, 3],
        "downlink": [1, 2, 0, 3],
    }
    assert [line.client for line in tallies.lines(names, "uplink", limit=2)] == [2, 0]


def test_who_answered_last_where_no_time_passes(tmp_path):
    """As in a simulation whose clients have no pace: client c answers in version c alone."""
    rows = [row._replace(client=at, version=at, arrived=0.0) for at, row in enumerate(replies(30, [0]))]
    with RunStore(tmp_path) as store:
        store.append_replies(rows)
        tallies = Tallies()
        tallies.add_replies(store.replies_between(0, len(rows)))
    tallies.add_trouble("lost", [30])
    assert [line.client for line in tallies.lines(Names(tmp_path))] == list(range(29, 9, -1))
    assert [line.client for line in tallies.lines(Names(tmp_path), limit=40)][-2:] == [0, 30]


def test_find_by_number_and_by_name(names):
    tallies = Tallies()
    tallies.add_trouble("lost", [0, 1, 3])
    found = {text: [line.client for line in tallies.lines(names, "number", text)] for text in
             ("1", "client 1", "AB", "d", "日", "2", "nobody", "9" * 30, "²")}  # fmt: skip
    assert found == {
        "1": [1], "client 1": [1], "AB": [0], "d": [1], "日": [3], "2": [], "nobody": [], "9" * 30: [], "²": [],
    }  # fmt: skip


def test_names(names, tmp_path):
    assert [names.of(c) for c in (0, 3, 4)] == ["ab", NASTY, "client 4"]
    (tmp_path / "population.json").write_text(json.dumps({"names": ["x", "y\x1b[2J"], "numbers": [40, 8]}))
    other = Names(tmp_path)
    assert [other.of(c) for c in (40, 8, 0)] == ["x", "y�[2J", "client 0"]
    assert Names(tmp_path / "nowhere").of(5) == "client 5"
