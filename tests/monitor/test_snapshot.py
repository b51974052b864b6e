from __future__ import annotations

import json
import math

from partwise.experiment.store import RunStore
from partwise.monitor import Follower, snapshot
from toy_runs import full_run, write_run


def test_a_run_in_numbers(tmp_path):
    found = snapshot(Follower(full_run(tmp_path / "a", 0.02, 1000)))
    json.dumps(found, allow_nan=False)
    assert found["metric"] == {"key": "auc/pooled", "is_main": True, "higher_is_better": True}
    keys = [m["key"] for m in found["metrics"]]
    assert keys[:5] == ["auc/pooled", "auc/mean", "auc/p10", "auc/p90", "auc/worst"]
    assert set(keys[5:]) == {"auc/pooled@0.5", "auc/pooled@0.25"}
    assert found["metrics"][1]["title"] == "AUC, mean"
    assert set(found["curves"]) == {"metric", "loss", "staleness", "most_staleness"}
    assert found["curves"]["metric"] == {
        "of": 7,
        "versions": [0, 2, 4, 6, 8, 10, 12],
        "seconds": [0.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0],
        "uplink": [0, 2000, 4000, 6000, 8000, 10_000, 12_000],
        "downlink": [0, 4000, 8000, 12_000, 16_000, 20_000, 24_000],
        "values": [0.5 + 0.02 * v for v in (0, 2, 4, 6, 8, 10, 12)],
    }
    assert found["curves"]["staleness"]["uplink"] == [None] * 3  # commits know no bytes
    assert found["curves"]["most_staleness"]["values"] == [0.0, 1.0, 2.0]
    assert [i["kind"] for i in found["incidents"]] == ["refused", "lost", "lost"]
    assert found["clients"][0]["client"] in (0, 1, 3)


def test_another_metric_order_and_search(tmp_path):
    follower = Follower(full_run(tmp_path / "a", 0.02, 1000))
    found = snapshot(follower, metric="auc/p10", order="replies", find="cd")
    assert found["metric"] == {"key": "auc/p10", "is_main": False, "higher_is_better": True}
    assert found["curves"]["metric"]["values"][0] == 0.4
    assert [c["name"] for c in found["clients"]] == ["cd"]
    assert snapshot(follower, metric="no/such")["metric"]["key"] == "auc/pooled"


def test_how_many_clients_are_found_of_which_only_the_first_are_listed(tmp_path):
    names = [f"{'ann' if client % 2 else 'bob'}-{client}" for client in range(90)]
    made = write_run(tmp_path / "a", [], replies=range(90), population={"names": names})
    found = {find: snapshot(Follower(made), order="number", find=find) for find in ("", "ann", "ann-8", "7", "eve")}
    assert {find: one["num_found"] for find, one in found.items()} == {"": 90, "ann": 45, "ann-8": 5, "7": 18, "eve": 0}
    assert [client["client"] for client in found["ann"]["clients"]] == list(range(1, 41, 2))


def test_a_run_that_has_just_begun(tmp_path):
    found = snapshot(Follower(write_run(tmp_path / "a", [])))
    assert (found["curves"], found["clients"], found["incidents"], found["metrics"]) == ({}, [], [], [])
    assert found["run"]["value"] is None


def test_what_is_not_finite(tmp_path):
    with RunStore(tmp_path / "a") as store:
        store.set_meta(metric="loss", status="done", higher_is_better=False)
        store.append_metrics(
            [(v, 1.0, 0, 0, "loss", "central", x) for v, x in ((1, 2.5), (2, math.inf), (3, math.nan))]
        )
    found = snapshot(Follower(tmp_path / "a"))
    assert found["curves"]["metric"]["values"] == [2.5, None, None]
    assert (found["run"]["value"], found["run"]["best"]) == (None, 2.5)
