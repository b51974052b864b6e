from __future__ import annotations

import math
import shutil
import sqlite3

import pytest

from partwise.core.errors import CheckpointError
from partwise.experiment.store import RECORD, RunStore
from partwise.monitor.follow import LOSS, MEAN_STALENESS, MOST_STALENESS, Follower
from partwise.monitor.snapshot import snapshot
from toy_runs import NASTY, full_run

META = {
    "name": "grow",
    "scheduler": "FedBuff(versions=9)",
    "runtime": "Processes()",
    "metric": "auc",
    "higher_is_better": True,
    "status": "running",
    "num_clients": 4,
    "versions": 9,
}


def begin(folder):
    store = RunStore(folder)
    store.set_meta(**META)
    store.commit()
    return store


def add_version(store, version, client, *, staleness=(0,), value=0.5, loss=0.25):
    now = 10.0 * version
    row = (version, now, 100 * version, 300 * version)
    store.append_events([(now, "reply", {"client": client, "id": version})])
    store.append_replies([(version, client, version, 5, 7, 90, 80, now - 3, now - 2, now - 1, now, loss, staleness[0])])
    store.append_events([(now, "commit", {"version": version, "clients": [client], "staleness": list(staleness)})])
    store.append_metrics([(*row, "auc", "pooled", value), (*row, "train_loss", "cohort", loss)])
    store.commit()


def without_times(found):
    """What does not depend on when it was looked at, and how often."""
    run = {k: v for k, v in found["run"].items() if k not in ("now", "written_at", "seconds_left")}
    return {**{k: v for k, v in found.items() if k != "changes"}, "run": run}


def test_a_finished_run(tmp_path):
    follower = Follower(full_run(tmp_path / "a", 0.02, 1000, meta={"status": "done", "versions": 12}))
    now = follower.standing()
    assert (now.name, now.status, now.is_running, now.noun) == ("a", "done", False, "round")
    assert (now.version, now.total, now.seconds, now.uplink, now.downlink) == (12, 12, 360.0, 12_000, 24_000)
    assert (now.metric, now.scope, now.value, now.best) == ("auc", "pooled", 0.74, 0.74)
    assert now.loss == 0.62
    assert (now.replies, now.lost, now.refused, now.skipped, now.clients, now.answered) == (6, 2, 1, 0, 4, 4)
    assert now.staleness == 1.0
    assert math.isnan(now.epsilon)
    assert math.isnan(now.seconds_left)
    lines = {line.client: (line.replies, line.lost, line.refused) for line in follower.clients.lines(follower.names)}
    assert lines == {0: (3, 1, 0), 1: (2, 0, 0), 2: (0, 1, 0), 3: (1, 0, 1)}
    assert [p.value for p in follower.series[MEAN_STALENESS].points()] == [0.0, 0.5, 1.0]
    assert [p.value for p in follower.series[MOST_STALENESS].points()] == [0.0, 1.0, 2.0]
    refused = next(i for i in follower.incidents if i.kind == "refused")
    assert (refused.client, refused.name, refused.version, refused.stage) == (3, NASTY, 4, "")
    assert refused.reason == f"must be finite, got {NASTY}"


def test_a_run_is_followed_as_if_it_were_read_at_once(tmp_path):
    with begin(tmp_path / "a") as store:
        follower = Follower(tmp_path / "a")
        assert (follower.standing().version, follower.standing().is_running) == (0, True)
        for version, client in ((1, 3), (2, 0), (3, 3)):
            add_version(store, version, client, staleness=(version, 0), value=0.5 + version / 8)
            if version == 2:
                store.append_events([(21.0, "lost", {"client": 1, "version": 2, "stage": "train", "reason": "gone"})])
                store.commit()
            before = follower.changes
            follower.refresh()
            assert follower.changes == before + 1
            assert follower.standing().version == version
            assert without_times(snapshot(follower)) == without_times(snapshot(Follower(tmp_path / "a")))
        follower.refresh()
        assert follower.changes == before + 1  # nothing was new
        store.set_meta(status="done")
    follower.refresh()
    assert (follower.standing().status, follower.standing().is_running) == ("done", False)
    assert follower.standing().lost == 1


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_run_that_was_cut_and_resumed_is_read_anew(tmp_path, kept):
    """Also where it has as many rows as before when it is looked at again, or more."""
    with begin(tmp_path / "a") as store:
        for version in (1, 2, 3):
            add_version(store, version, version % 3, loss=0.5)
        follower = Follower(tmp_path / "a")
        store.truncate_after(seq=2 * kept, version=kept)
        for version in range(kept + 1, 6):
            add_version(store, version, 1, loss=0.125, staleness=(4,))
        follower.refresh()
        assert without_times(snapshot(follower)) == without_times(snapshot(Follower(tmp_path / "a")))
        assert follower.standing().version == 5
        assert [p.value for p in follower.series[LOSS].points()] == [0.5] * kept + [0.125] * (5 - kept)


@pytest.mark.parametrize("call", ["metrics_between", "events_between", "event_at", "replies_between"])
def test_a_fault_in_the_middle_makes_nothing_count_twice(tmp_path, monkeypatch, call):
    """Rows are read by two, and the second reading of each kind fails once."""
    monkeypatch.setattr("partwise.monitor.follow._ROWS", 2)
    with begin(tmp_path / "a") as store:
        follower = Follower(tmp_path / "a")
        for version in range(1, 8):
            add_version(store, version, version % 3, staleness=(version, 1))
        whole, times = getattr(RunStore, call), []

        def failing(self, *args):
            times.append(args)
            if len(times) == 2:
                raise CheckpointError("the disk blinked")
            return whole(self, *args)

        monkeypatch.setattr(RunStore, call, failing)
        with pytest.raises(CheckpointError, match="the disk blinked"):
            follower.refresh()
        follower.refresh()
        assert len(times) > 2
        assert without_times(snapshot(follower)) == without_times(snapshot(Follower(tmp_path / "a")))
        assert follower.standing().replies == 7


def test_another_run_in_the_same_folder(tmp_path):
    full_run(tmp_path / "a", 0.02, 1000)
    follower = Follower(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"there must be a run's record\.sqlite, got no folder\. Name a run's"):
        follower.refresh()
    assert follower.standing().version == 12  # what was known stays
    with begin(tmp_path / "a") as store:
        add_version(store, 1, 2)
        follower.refresh()
        assert (follower.standing().name, follower.standing().version, follower.standing().lost) == ("grow", 1, 0)


def test_no_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"got a folder without one"):
        Follower(tmp_path)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE events SET body = x'c1' WHERE kind = 'lost'", r"needs a whole record\.sqlite, got: malformed event"),
        ("UPDATE events SET body = x'93' WHERE kind = 'commit'", r"needs a whole record\.sqlite, got: malformed event"),
        ("UPDATE events SET body = x'05' WHERE kind = 'lost'", r"needs a whole record\.sqlite, got a row that is not"),
        ("UPDATE metrics SET value = 'high'", r"needs a whole record\.sqlite, got a row that is not one: "),
        ("UPDATE meta SET value = '{' WHERE key = 'name'", r"needs a whole record\.sqlite, got: malformed fact"),
        ("DROP TABLE replies", r"needs a whole record\.sqlite, got: no such table: replies"),
    ],
)
def test_a_damaged_record(tmp_path, statement, said):
    folder = full_run(tmp_path / "a", 0.02, 1000)
    with sqlite3.connect(folder / RECORD) as db:
        db.execute(statement)
    db.close()
    with pytest.raises(CheckpointError, match=said):
        Follower(folder)


def test_pages_of_a_record_that_are_not_there(tmp_path):
    folder = full_run(tmp_path / "a", 0.02, 1000)
    whole = (folder / RECORD).read_bytes()
    (folder / RECORD).write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    with pytest.raises(CheckpointError, match=r"needs a whole record\.sqlite"):
        Follower(folder)


def test_words_of_clients_are_cut_and_stripped_of_control_characters(tmp_path):
    with begin(tmp_path / "a") as store:
        body = {"client": 2, "version": 1, "stage": "train\x1b]0;x\x07", "reason": "\u202e" + "a" * 9000}
        body["traceback"] = "x" * 10_000 + "\nValueError: \x1b[31mend"
        store.append_events([(1.0, "lost", body)])
        store.append_events([(2.0, "skipped", {"version": 3, "replies": 2, "reason": "too few"})])
    follower = Follower(tmp_path / "a")
    lost, skipped = follower.incidents
    assert lost.stage == "train�]0;x�"
    assert (len(lost.reason), lost.reason[:2], lost.reason[-1]) == (500, "�a", "…")
    assert (len(lost.traceback), lost.traceback[-20:]) == (4000, "ValueError: �[31mend")
    assert skipped == ("skipped", None, "", 3, "", "too few", "", 2.0)


def test_nodes_of_a_network(tmp_path):
    trace = "Traceback (most recent call last):\n  File x\nRuntimeError: \x1b[1mno memory\n"
    with begin(tmp_path / "a") as store:
        there = [(1.0, "lab1", True, 3), (2.0, "lab2", True, 2), (7.0, "lab1", False, 3)]
        store.append_events([(t, "node", {"node": n, "is_there": i, "clients": c}) for t, n, i, c in there])
        store.append_events([(8.0, "node_error", {"node": "lab2", "clients": [4], "text": trace})])
        store.append_events([(9.0, "rejected", {"node": "lab\x1b3", "reason": "node lab3 sent it once more"})])
    follower = Follower(tmp_path / "a")
    assert list(follower.nodes.values()) == [
        ("lab1", False, 7.0, 3, 0, 0),
        ("lab2", True, 2.0, 2, 1, 0),
        ("lab�3", False, 0.0, 0, 0, 1),
    ]
    failed, rejected = follower.incidents
    assert failed[:6] == ("failed", None, "node lab2", None, "", "RuntimeError: �[1mno memory")
    assert failed.traceback == trace.strip().replace("\x1b", "�")
    assert rejected[:6] == ("rejected", None, "node lab�3", None, "", "node lab3 sent it once more")


def test_what_is_kept_is_bounded(tmp_path):
    with begin(tmp_path / "a") as store:
        lost = {"client": 1, "version": 0, "stage": "train", "reason": "gone"}
        store.append_events([(float(at), "lost", lost) for at in range(300)])
        store.append_metrics([(v, 1.0, 0, 0, "auc", "pooled", (v * 7919) % 1000) for v in range(5000)])
        there = {"is_there": True, "clients": 1}
        store.append_events([(1.0, "node", {"node": f"n{at}", **there}) for at in range(1100)])
        store.append_metrics([(1, 1.0, 0, 0, f"m{at}", "pooled", 0.5) for at in range(500)])
    follower = Follower(tmp_path / "a")
    assert (len(follower.incidents), follower.standing().lost) == (50, 300)
    assert follower.incidents[-1].seconds == 299.0
    assert (len(follower.series), len(follower.nodes)) == (200, 1000)
    assert len(follower.series["auc", "pooled"].points()) <= 602
    assert (follower.standing().best, follower.series["auc", "pooled"].num_added) == (999, 5000)


def test_time_left_is_told_where_the_end_is_known(tmp_path, monkeypatch):
    times = iter([100.0, 104.0, 108.0])
    monkeypatch.setattr("partwise.monitor.follow.time.monotonic", lambda: next(times))
    with begin(tmp_path / "a") as store:
        add_version(store, 1, 0)
        follower = Follower(tmp_path / "a")
        assert math.isnan(follower.standing().seconds_left)
        for version in (2, 5):
            for at in range(follower.standing().version + 1, version + 1):
                add_version(store, at, 0)
            follower.refresh()
        assert follower.standing().seconds_left == 8.0  # 4 versions in 8 seconds; 4 of 9 are to come
        store.set_meta(versions=10**400)
        store.commit()
        monkeypatch.setattr("partwise.monitor.follow.time.monotonic", lambda: 112.0)
        add_version(store, 6, 0)
        follower.refresh()
        assert follower.standing().total == 10**400
        assert math.isnan(follower.standing().seconds_left)
