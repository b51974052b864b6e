from __future__ import annotations

import json
import os
import sqlite3

import pytest

from partwise.cli.status import _live
from partwise.experiment.store import RECORD, RunStore
from partwise.monitor import Follower
from toy_cli import call
from toy_runs import NASTY, full_run


@pytest.fixture
def run(tmp_path):
    return full_run(tmp_path / "a", 0.02, 1000, meta={"status": "done", "versions": 12, "guarantee": "(8, 1e-5)-DP"})


def words(out):
    return [" ".join(line.split()) for line in out.splitlines()]


def test_live_writes_names_letter_by_letter(tmp_path, capsys):
    run = full_run(tmp_path / "a", 0.02, 1000, meta={"status": "done", "metric": "error[/2]"})
    _live(Follower(run), 0.01)
    assert "error[/2] (" in capsys.readouterr().out


def test_once(run):
    said = words(call("status", run)[0])
    for line in (
        "run a",
        "status done",
        "length 12 of 12 rounds; 6.00 min of virtual time",
        "auc (pooled) 0.7400, best 0.7400",
        "training loss 0.6200",
        "sent 12.0 kB up, 24.0 kB down",
        "clients 4 of 4 heard of, 6 replies; 2 lost, 1 refused",
        "staleness 1.00 in the mean of the last round",
        "privacy ε = –; (8, 1e-5)-DP",
        "client reply at replies round stale up down lost refused",
        "ab 1.00 s 3 1 0 0 B 0 B 1 0",
        "ef – 0 – – 0 B 0 B 1 0",
        f"{NASTY}: refused at version 4: must be finite, got {NASTY}",
        "ab: lost in train at version 3: RuntimeError: no memory",
    ):
        assert line in said, "\n".join(said)


def test_as_json(run):
    found = json.loads(call("status", run, "--json")[0])
    assert (found["run"]["version"], found["run"]["lost"]) == (12, 2)


def test_what_a_client_wrote_reaches_no_terminal(run):
    with RunStore(run) as store:
        body = {
            "client": 1,
            "version": 3,
            "stage": "train",
            "reason": "\x1b[2Jgone",
            "traceback": "File x\nE: \x1b]0;y\x07",
        }
        store.append_events([(2.0, "lost", body)])
    out, _ = call("status", run)
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "cd: lost in train at version 3: �[2Jgone\nFile x\nE: �]0;y�" in out


def test_nodes_of_a_network(run):
    with RunStore(run) as store:
        store.append_events([(2.0, "node", {"node": "lab1", "is_there": True, "clients": 3})])
        store.append_events(
            [(4.0, "node_error", {"node": "lab1", "clients": [2], "text": "Traceback:\nMemoryError: full"})]
        )
        store.set_meta(status="running")
        store.commit()
        said = words(call("status", run)[0])
    assert "node since clients failed rejected" in said
    assert "lab1 there 2.00 s 3 1 0" in said
    assert "node lab1: failed: MemoryError: full" in said


def test_no_run(tmp_path):
    _, err = call("status", tmp_path / "none", code=3)
    said = f"RunStore('{tmp_path / 'none'}'): there must be a run's record.sqlite, got no folder. Name a run's folder."
    assert err == f"partwise: {said}\n"


def test_a_damaged_record(run):
    with sqlite3.connect(run / RECORD) as db:
        db.execute("DROP TABLE metrics")
    db.close()
    assert "needs a whole record.sqlite, got: no such table: metrics" in call("status", run, code=3)[1]


@pytest.fixture
def growing(tmp_path, monkeypatch):
    """A run that makes a version whenever somebody waits, and ends after three."""
    store = RunStore(tmp_path / "a")
    store.set_meta(name="grow", metric="auc", scheduler="FedBuff()", status="running", versions=3)
    store.commit()
    versions = iter((1, 2, 3))

    def sleep(seconds):
        version = next(versions, 0)
        if version:
            store.append_metrics([(version, 1.0 * version, 10, 20, "auc", "pooled", 0.25 * version)])
        else:
            store.set_meta(status="done")
        store.commit()

    monkeypatch.setattr("partwise.cli.status.time.sleep", sleep)
    with store:
        yield tmp_path / "a"


def test_follow_as_json(growing):
    out, _ = call("status", growing, "--follow", "--json")
    found = [json.loads(line)["run"] for line in out.splitlines()]
    assert [(one["version"], one["is_running"]) for one in found] == [
        (0, True), (1, True), (2, True), (3, True), (3, False),
    ]  # fmt: skip
    assert (found[-1]["status"], found[-1]["value"]) == ("done", 0.75)


def test_follow_in_lines(growing, monkeypatch):
    """All there is to say, then lines, which do not come too often."""
    out, _ = call("status", growing, "--follow")
    assert words(out)[:2] == ["run grow", f"status running (pid {os.getpid()})"]
    assert (
        words(out)[-1] == "version 3/3 auc 0.7500 (best 0.7500) train loss – up 10 B down 20 B 0 lost, 0 refused done"
    )
    assert not any(line.startswith("version 2/3") for line in words(out))


def test_follow_on_a_terminal(growing, capsys):
    _live(Follower(growing), 0.1)
    assert words(capsys.readouterr().out)[:3] == [
        "run grow",
        "status done",
        "length 3 of 3 versions; 3.00 s of virtual time",
    ]


def test_follow_a_run_that_is_over(run):
    assert call("status", run, "--follow")[0].startswith("run")
    assert len(call("status", run, "--follow", "--json")[0].splitlines()) == 1


def test_page_says_what_is_wrong(tmp_path, run):
    assert "got no folder. Name a run's folder." in call("page", tmp_path / "none", "--port", "0", code=3)[1]
    _, err = call("page", run, "--port", "70000", code=2)
    assert err == "partwise: page(port=70000): must be from 0 to 65535, got 70000. 0 takes any that is free.\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_page_warns_where_others_can_read_it(run, monkeypatch, host):
    told = {}

    def serve(folder, *, say, **how):
        told.update(how, folder=folder)
        say("http://there/")

    monkeypatch.setattr("partwise.monitor.serve.serve", serve)
    out, err = call("page", run, "--host", host, "--allow-host", "lab", "--port", "5")
    assert told == {"folder": run, "host": host, "port": 5, "names": ["lab"]}
    assert out == f"{run} is shown at http://there/  (Ctrl-C ends the page, not the run)\n"
    assert err == ("" if host == "127.0.0.1" else "Everybody who can reach this address can read it.\n")
