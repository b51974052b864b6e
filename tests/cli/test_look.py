from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree

import pytest

from partwise.experiment.store import RunStore
from partwise.experiment.words import number
from toy_cli import TINY, call
from toy_runs import write_run
from toy_scores import experiment


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """A folder with two finished runs."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "tiny.toml").write_text(TINY)
    for name, rate in (("slow", 0.001), ("quick", 0.5)):
        call(
            "run",
            folder / "tiny.toml",
            "-q",
            "--folder",
            folder / "runs" / name,
            f"name={name}",
            f"algorithm.local.optimizer.lr={rate}",
        )
    return folder / "runs"


def test_list(two_runs):
    out, _ = call("list", "--root", two_runs)
    head, quick, slow = out.splitlines()
    assert head.split() == ["folder", "algorithm", "status", "version", "score"]
    assert quick.split()[:4] == [str(two_runs / "quick"), "FedAvg", "done", "4"]
    assert slow.split()[-2] == "accuracy"
    found = json.loads(call("list", "--root", two_runs, "--json")[0])
    assert [(r["name"], r["status"], r["version"], r["metric"]) for r in found] == [
        ("quick", "done", 4, "accuracy"), ("slow", "done", 4, "accuracy"),
    ]  # fmt: skip
    assert found[0]["value"] > found[1]["value"]


@pytest.mark.parametrize("evaluated", [100, 37])
def test_list_reads_as_many_rows_however_long_a_run_is(evaluated, tmp_path, monkeypatch):
    with RunStore(tmp_path / "runs" / "long") as store:
        store.set_meta(name="long", metric="auc")
        store.append_metrics(
            (version, 1.0 * version, 0, 0, name, "central", version / 128)
            for version in range(1, 101)
            for name in ("auc", "train_loss")
            if name != "auc" or version <= evaluated
        )
        store.commit()
    read, all_of = [], RunStore._all
    monkeypatch.setattr(RunStore, "_all", lambda *args: [read.append(row) or row for row in all_of(*args)])
    (found,) = json.loads(call("list", "--root", tmp_path / "runs", "--json")[0])
    assert (found["version"], found["value"]) == (100, evaluated / 128)
    assert len(read) < 20


def test_list_of_nothing(here):
    assert call("list")[0] == "There are no runs in runs. Make one: partwise demo\n"


def test_list_shows_the_other_runs_where_one_is_damaged(two_runs, tmp_path):
    shutil.copytree(two_runs, tmp_path / "runs")
    record = tmp_path / "runs" / "quick" / "record.sqlite"
    found = record.read_bytes()
    assert b"train_loss" in found
    record.write_bytes(found.replace(b"train_loss", b"train\xffloss"))  # a name of a metric that is no text
    _, quick, slow = call("list", "--root", tmp_path / "runs")[0].splitlines()
    assert "cannot be read" in quick
    assert slow.split()[1:4] == ["FedAvg", "done", "4"]
    assert [r["status"] for r in json.loads(call("list", "--root", tmp_path / "runs", "--json")[0])] == [
        "cannot be read", "done",
    ]  # fmt: skip


def test_show(two_runs):
    out, _ = call("show", two_runs / "quick")
    words = [" ".join(line.split()) for line in out.splitlines()]
    assert "run quick" in words
    assert "status done" in words
    assert "round accuracy (pooled) uplink downlink clock" in words
    assert [w.split()[0] for w in words if re.match(r"\d ", w)] == ["0", "1", "2", "3", "4"]
    assert any(w.startswith("over clients: mean 0.") for w in words)
    assert any(w.startswith("served worst: ") for w in words)
    spec, _ = call("show", two_runs / "quick", "--spec")
    assert spec == (two_runs / "quick" / "spec.toml").read_text()


def test_a_run_without_test_examples_is_shown_by_its_training_loss(here):
    """What `partwise run` names at its end must work there, too."""
    out, _ = call("run", "tiny.toml", "workload.test_share=0.0", "--folder", "untested")
    assert out.endswith("  partwise show untested\n  partwise report untested --out report.html\n")
    with RunStore("untested", "read") as store:
        losses = [row["value"] for row in store.metrics("train_loss", "cohort")]
        assert not store.metrics("accuracy")
    rows = [line.split() for line in call("show", "untested")[0].splitlines()]
    assert ["round", "train_loss", "(cohort)", "uplink", "downlink", "clock"] in rows
    assert [row[1] for row in rows if row and row[0] in "1234"] == [number(loss, 4) for loss in losses]
    call("report", "untested", "--out", "report.html")
    assert f"Training loss {number(losses[-1])} after 4 rounds" in (here / "report.html").read_text(encoding="utf-8")
    assert call("compare", "untested", "untested")[0].startswith("train_loss (cohort); ")


def test_a_run_without_versions_is_shown(here):
    RunStore("begun").close()
    out, _ = call("show", "begun")
    assert "length     0 rounds, 0 s on the run's clock" in out.splitlines()


def test_the_specification_of_a_run_that_has_none(here):
    experiment().run(here / "toy")
    out, said = call("show", "toy", "--spec", code=3)
    assert out == ""
    assert said == (
        "partwise: toy: needs the run's spec.toml, got none: the run was made in Python of parts that a specification "
        "cannot name. Look at the Python code that made it.\n"
    )


def test_names_are_written_letter_by_letter(here):
    name = "lr[/2] [bold]at :dog:"
    call("run", "tiny.toml", "-q", f"name={name}", "scheduler.rounds=1", "--folder", "[red]")
    out, _ = call("show", "[red]")
    assert out.splitlines()[0] == f"run        {name}"
    assert f"\n{name} #2 " in call("compare", "[red]", "[red]")[0]
    assert "[red]" in call("list", "--root", ".")[0]


def test_list_shows_the_score_that_the_run_goes_by(here):
    call("run", "tiny.toml", "-q", "evaluation.scope=worst", "--folder", "runs/worst")
    with RunStore("runs/worst", "read") as store:
        worst, pooled = (store.metrics("accuracy", scope)[-1]["value"] for scope in ("worst", "pooled"))
    assert worst < pooled
    assert json.loads(call("list", "--json")[0])[0]["value"] == worst
    assert f"accuracy {number(worst, 4)}" in call("list")[0]


def test_show_says_which_executor_was_chosen_and_why(here):
    call("run", "tiny.toml", "runtime.executor=Auto", "-q", "--folder", "chosen")
    out, _ = call("show", "chosen")
    words = [" ".join(line.split()) for line in out.splitlines()]
    assert any(w.startswith("runtime Simulate(executor=Auto(") for w in words)
    (said,) = (w for w in words if w.startswith("executor "))
    with RunStore("chosen", "read") as store:
        (chosen,) = (event["body"] for event in store.events("executor"))
    own, name = chosen["seconds"][chosen["chosen"]], chosen["chosen"].split("(")[0]
    assert said.startswith(f"executor {name}, by a trial; ")
    for part, seconds in chosen["seconds"].items():
        if part != chosen["chosen"]:
            assert f"{part.split('(')[0]} took {seconds / own:.2g} times as long" in said


def test_show_says_nothing_of_an_executor_that_was_not_to_choose(two_runs):
    assert "executor " not in call("show", two_runs / "quick")[0].replace("executor=", "")


def test_show_names_those_who_had_trouble(here):
    _, err = call("run", "tiny.toml", "algorithm.local.optimizer.lr=1e38", "-q", "--folder", "bad", code=1)
    assert err == (
        "partwise: the run made no version: every client was lost, or its update refused. See: partwise show bad\n"
    )
    out, _ = call("show", "bad")
    assert re.search(r"clients lost or refused: \d+\n  \w+.* refused at version 0: stream 'model' must be finite", out)


def test_names_of_clients_are_shown_in_one_line_without_control_characters(tmp_path):
    names = ["\x1b]0;title\x07ann", "bob\nmay", "\u202ecid", "x" * 300]
    write_run(
        tmp_path / "named",
        [(1, 9.0, 1, 1, 0.5)],
        spread={"mean": [0.1]},
        clients=[(client, client / 10, 1) for client in range(3)],
        spans=[(client, 1.0, 2.0, 5.0, 9.0) for client in range(4)],
        troubles=[("lost", 3, 1, "train", "gone")],
        population={"clients": 4, "names": names},
    )
    shown = ["�]0;title�ann", "bob may", "�cid", "x" * 199 + "…"]
    out, _ = call("show", tmp_path / "named")
    assert f"\nserved worst: {shown[0]} 0.000, {shown[1]} 0.100, {shown[2]} 0.200\n" in out
    assert f"\n  {shown[3]} lost at version 1: gone\n" in out
    rows = call("timeline", tmp_path / "named", "--text")[0].splitlines()
    assert [row[:16].strip() for row in rows[1:5]] == [*shown[:3], "x" * 15 + "…"]
    call("timeline", tmp_path / "named", "--out", tmp_path / "timeline.svg")
    written = ElementTree.parse(tmp_path / "timeline.svg").iter("{http://www.w3.org/2000/svg}text")
    assert {*shown[:3]} <= {text.text for text in written}
    assert "\x1b" not in call("status", tmp_path / "named")[0]


def test_compare(two_runs):
    out, _ = call("compare", two_runs / "slow", two_runs / "quick", "--target", "0.01")
    lines = out.splitlines()
    assert lines[0] == "accuracy (pooled); bytes go both ways"
    assert "rounds to 0.010" in lines[1].replace("0.0100", "0.010")
    assert [line.split()[0] for line in lines[2:4]] == ["slow", "quick"]
    assert lines[4:] == ["", "The logs of slow and quick are the same, 9 messages."]  # 1 + 4 rounds * 2
    rows = json.loads(call("compare", two_runs / "slow", two_runs / "quick", "--json", "--target", "2")[0])
    assert [r["name"] for r in rows] == ["slow", "quick"]
    assert [r["target_version"] for r in rows] == [None, None]
    assert [(r["log_messages"], r["log_differs_at"]) for r in rows] == [(9, None)] * 2
    assert "never" in call("compare", two_runs / "slow", "--target", "2")[0]


def test_compare_counts_in_versions_where_there_are_no_rounds(here, two_runs):
    buffered = 'scheduler={name="FedBuff", buffer=1, concurrency=2, versions=2}'
    call("run", "tiny.toml", buffered, "-q", "--folder", "buffered")
    for runs in (["buffered"], ["buffered", two_runs / "quick"]):
        head = call("compare", *runs, "--target", "2")[0].splitlines()[1]
        assert "  versions to 2" in head
        assert "rounds" not in head


def test_compare_over_time_and_by_logs(two_runs, tmp_path):
    """Three clients a round; the second run is one round longer, and its clients take longer over their steps."""
    for name, pace, rounds in (("brisk", 0.25, 2), ("lazy", 0.5, 3)):
        profiles = f"workload.profiles={{name='Constant', seconds_per_step={pace}}}"
        call(
            "run", two_runs.parent / "tiny.toml", "-q", "--folder", tmp_path / name, f"name={name}", profiles,
            f"scheduler.rounds={rounds}",
        )  # fmt: skip
    out, _ = call("compare", tmp_path / "brisk", tmp_path / "lazy")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    at = lines.index("accuracy by the clock; – where a run had not begun or was over")
    assert lines[at + 1] == "clock brisk lazy"
    assert len(lines[at + 2].split()) > 2
    assert lines[-1].startswith("The logs of brisk and lazy part at message 5: a message of client ")
    log = tmp_path / "lazy" / "log.bin"
    out, _ = call("compare", log, tmp_path / "lazy", two_runs / "quick")
    same, other = out.splitlines()
    assert same == f"The logs of {log} and {tmp_path / 'lazy'} are the same, 19 messages."
    assert other.startswith(f"The logs of {log} and {two_runs / 'quick'} part at message ")
    found = json.loads(call("compare", log, tmp_path / "lazy", "--json")[0])
    assert [(f["log_messages"], f["log_differs_at"]) for f in found] == [(19, None)] * 2
    _, err = call("compare", log, code=2)
    assert (
        err == f"partwise: compare {log}: a log is compared with another, or with a run's folder, got one. Name both.\n"
    )


def test_compare_by_what_was_not_measured(two_runs):
    _, err = call("compare", two_runs / "slow", two_runs / "quick", "--metric", "auc", code=2)
    assert err.startswith("partwise: compare(2 runs): all must have recorded auc, got ")


def test_report(two_runs, tmp_path):
    out, _ = call("report", two_runs / "slow", two_runs / "quick", "--out", tmp_path / "r.html")
    assert out == f"The report is in {tmp_path / 'r.html'}\n"
    assert "quick" in (tmp_path / "r.html").read_text()


def test_parts():
    out, _ = call("parts")
    assert re.search(r"^(algorithms)? +FedAvg +Every client trains the whole model", out, re.MULTILINE)
    assert re.search(r"^ +TopK ", out, re.MULTILINE)
    out, _ = call("parts", "FedProx")
    assert out.startswith("FedProx  algorithms\n")
    assert re.search(r"^  mu +float +0\.01 +strength of the pull", out, re.MULTILINE)
    assert re.search(r"^  weights +'uniform' \| 'samples' \| 'unbiased' +'samples'", out, re.MULTILINE)
    assert "Source: Li et al." in out
    assert re.search(r"^  f +int +must be given ", call("parts", "Krum")[0], re.MULTILINE)
    assert re.search(r"^  every_seconds +float +20\.0 ", call("parts", "Checkpointing")[0], re.MULTILINE)
    sections = {part["name"] for part in json.loads(call("parts", "sections", "--json")[0])}
    assert sections == {"Checkpointing", "ClientDP", "Evaluation", "Journaling", "Trusted"}
    assert call("parts", "aggregators")[0].count("aggregators\n") >= 4
    found = json.loads(call("parts", "SGD", "--json")[0])
    assert [(p["family"], p["name"]) for p in found] == [("local", "SGD")]
    assert found[0]["parameters"][0] == {
        "name": "lr",
        "type": "float",
        "default": "0.1",
        "about": "local learning rate, > 0",
    }
    _, err = call("parts", "fedsub", code=2)
    assert err == "partwise: parts fedsub: there is no such family or part. Did you mean 'FedSubAvg'?\n"


@pytest.mark.parametrize(("part", "end"), [("LeafSynthetic", "generate_synthetic.py`."), ("Dirichlet", "1905.12022.")])
def test_parts_say_the_whole_source(part, end):
    source = next(line for line in call("parts", part)[0].splitlines() if line.startswith("  Source: "))
    assert source.endswith(end)
