from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

from partwise.cli import run
from partwise.cli.run import On, _load
from partwise.experiment.spec import load
from partwise.experiment.store import RunStore
from toy_cli import TINY, call, events
from toy_killed import SOURCE

# Interrupts the run it is in when a file says so; leaves updates as they are.
STOPPER = textwrap.dedent("""
    from __future__ import annotations
    import os, signal
    from dataclasses import dataclass
    from pathlib import Path
    from typing import Any

    @dataclass(frozen=True)
    class Stopper:
        "Passes updates on."
        marker: Path

        def init(self, params: Any) -> Any:
            return 0

        def apply(self, update: Any, state: Any, rng: Any) -> Any:
            if state == 1 and self.marker.exists():
                self.marker.unlink()
                os.kill(os.getpid(), signal.SIGINT)
            return update, state + 1
""")


def test_run_says_what_happens_and_what_comes_next(here):
    out, err = call("run", "tiny.toml")
    assert err == ""
    (folder,) = (here / "runs").iterdir()
    lines = out.splitlines()
    assert lines[1] == f"tiny: 4 rounds, 7 clients; in runs/{folder.name}"
    rounds = [line for line in lines if line.startswith("round ")]
    assert [line.split("  ")[0] for line in rounds] == ["round 1/4", "round 2/4", "round 3/4", "round 4/4"]
    assert re.fullmatch(
        r"round 2/4  accuracy [\d.]+ \(best [\d.]+\)  train loss [\d.]+  up [\d.]+ kB  down [\d.]+ kB  "
        r"\d+ clients/s  \d+ s left",
        rounds[1],
    )
    assert lines[-4].startswith("4 rounds: accuracy ")
    assert lines[-2:] == [
        f"  partwise show runs/{folder.name}",
        f"  partwise report runs/{folder.name} --out report.html",
    ]
    assert (folder / "spec.toml").is_file()


@pytest.mark.parametrize("view", ["--quiet", "--json"])
def test_rounds_without_end_take_a_time_that_nobody_knows(here, view):
    call("run", "tiny.toml", f"scheduler.rounds={10**400}", "evaluation.target=0.0", view, "--folder", "endless")
    with RunStore(here / "endless", "read") as store:
        assert store.meta()["status"].startswith("target reached")


def test_a_long_run_says_how_it_may_be_faster_unless_that_was_chosen(here, monkeypatch):
    monkeypatch.setattr(run, "_LONG", 0.0)
    assert "runtime.executor=Auto " in call("run", "tiny.toml")[0].splitlines()[-1]
    for others in (["runtime.executor=Auto"], ["--quiet"], ["--json"], ["--on", "processes"]):
        assert "runtime.executor" not in call("run", "tiny.toml", *others)[0]
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert "runtime.executor" not in call("run", "tiny.toml")[0]


def test_overrides_folder_and_root(here):
    call("run", "tiny.toml", "scheduler.rounds=2", "name=other", "--root", "elsewhere")
    assert [p.name.split("-")[0] for p in (here / "elsewhere").iterdir()] == ["other"]
    call("run", "--folder", "mine", "tiny.toml", "scheduler.rounds=1")
    assert (here / "mine" / "record.sqlite").is_file()
    _, err = call("run", "tiny.toml", "--folder", "mine", code=2)
    assert err == (
        "partwise: --folder mine: must be new or empty, got a folder with files. "
        "Name another, or go on with the run in it: partwise resume mine\n"
    )
    (here / "taken").mkdir()
    (here / "taken" / "notes.txt").touch()
    _, err = call("run", "tiny.toml", "--folder", "taken", code=2)
    assert err == "partwise: --folder taken: must be new or empty, got a folder with files. Name another.\n"


def test_json_is_one_object_per_line_and_nothing_else(here):
    out, err = call("run", "tiny.toml", "--json", "evaluation.every=3")
    found = events(out)
    assert err == ""
    assert [e["event"] for e in found] == ["started", *["committed"] * 4, "finished"]
    assert found[0] == {
        "event": "started", "name": "tiny", "folder": found[0]["folder"], "total": 4, "clients": 7,
        "metric": "accuracy", "noun": "round",
    }  # fmt: skip
    assert [bool(e["scores"]) for e in found[1:-1]] == [False, False, True, False]
    assert found[1]["value"] is None  # not measured yet: JSON has no nan
    assert {s["scope"] for s in found[3]["scores"]} == {"pooled", "mean", "weighted", "p10", "p90", "worst"}
    assert [e["version"] for e in found[1:]] == [1, 2, 3, 4, 4]
    uplinks = [e["uplink"] for e in found[1:-1]]
    assert uplinks == sorted(set(uplinks))
    assert found[-1]["reason"] == "done"
    assert isinstance(found[-1]["value"], float)  # the last version is measured at the end


def test_quiet_says_nothing(here):
    assert call("run", "tiny.toml", "--quiet") == ("", "")
    out, err = call("run", "tiny.toml", "-q", "scheduler.cohort=99", code=2)
    assert out == ""
    assert err == (
        "partwise: Synchronous(cohort=99): must be at most the population, got a population of 7. "
        "Lower the cohort or add clients.\n"
    )


def test_target_ends_the_run(here):
    out, _ = call("run", "tiny.toml", "--json", "evaluation.target=0.0")
    last = events(out)[-1]
    assert (last["version"], last["reason"].split(":")[0]) == (1, "target reached")


def test_a_run_that_was_killed_once_it_had_reached_its_target(here):
    call("run", "tiny.toml", "-q", "--folder", "reached", "evaluation.target=0.0")
    for options, said in ((), "target reached"), (("--json",), '"finished"'):
        with RunStore("reached") as store:
            store.set_meta(status="running")  # as it was before the end was written down
        out, err = call("resume", "reached", *options)
        assert err == ""
        assert said in out
        assert "''" not in out
    assert [e["event"] for e in events(out)] == ["started", "finished"]
    assert events(out)[0]["folder"] == "reached"


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_run_goes_on_where_nobody_reads_its_output(here, options):
    command = [sys.executable, "-m", "partwise", "run", "tiny.toml", "--folder", "run", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=SOURCE)
    assert child.stdout is not None
    child.stdout.close()  # as `head` does
    _, err = child.communicate(timeout=600)
    assert err == "partwise: the output must be writable, got: Broken pipe. The run goes on without.\n"
    assert child.returncode == 0
    with RunStore("run", "read") as store:
        assert store.meta()["status"] == "done"


def test_a_resume_that_is_interrupted_before_it_goes_on_says_how_to(here, monkeypatch):
    def pressed(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_frozen", pressed)
    _, err = call("resume", "a run", code=130)
    assert err == "partwise: interrupted before it went on. Go on with: partwise resume 'a run'\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["none.toml"], 2, r"none\.toml: must be a specification that can be read, got: No such file or directory\.\n"),
        (["tiny.toml", "sheduler.rounds=3"], 2, r"1 fault .*:\n  override sheduler\.rounds=3: .*'scheduler'\?\n"),
        (["tiny.toml", "--on", "nowhere"], 2, r"(?s)Usage: .*'nowhere'.*"),
        ([], 2, r"(?s)Usage: .*SPEC\.toml.*"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(here, args, code, said):
    out, err = call("run", *args, code=code)
    assert re.fullmatch(said, err.removeprefix("partwise: ")), err
    assert not (here / "runs").exists()
    assert "Traceback" not in out + err


def test_a_run_that_diverges(here):
    out, err = call("run", "tiny.toml", "algorithm.local.optimizer.lr=1e30", code=1)
    assert out.splitlines()[-1] == "failed"
    assert err.startswith("partwise: version ")
    assert "iverges" in err
    (folder,) = (here / "runs").iterdir()
    assert err.endswith(f"See: partwise show runs/{folder.name}\n")
    shown, _ = call("show", folder)
    assert "DivergedError" in shown


def test_a_folder_that_cannot_be_written(here):
    (here / "runs").write_text("a file")
    _, err = call("run", "tiny.toml", code=2)
    assert err.startswith("partwise: new_run_folder('runs'): needs a folder")
    assert err.endswith("Name another.\n")


def test_another_runtime(here):
    call("run", "tiny.toml", "--on", "simulate", "-q", "--folder", "a", "scheduler.rounds=1")
    assert type(load("a/spec.toml").runtime).__name__ == "Simulate"
    assert type(_load(here / "tiny.toml", [], On.processes).runtime).__name__ == "Processes"


def with_stopper(here, name="stopper.py"):
    (here / name).write_text(STOPPER)
    (here / "stop.toml").write_text(TINY + f'[[server]]\nname = "{name}:Stopper"\nmarker = "stop now"\n')
    return here / "stop.toml"


def test_ctrl_c_saves_and_resume_ends_with_the_same_bits(here, monkeypatch):
    """With a transform from a file outside the package, which `resume` finds again from another folder."""
    spec = with_stopper(here)
    call("run", spec, "-q", "--folder", "undisturbed")
    (here / "stop now").write_text("")
    out, err = call("run", spec, "--folder", "stopped", code=130)
    assert out.splitlines()[-1] == "interrupted"
    assert err == "partwise: interrupted, and saved at round 2. Go on with: partwise resume stopped\n"
    assert "interrupted" in call("list", "--root", ".")[0]
    (here / "beside").mkdir()
    monkeypatch.chdir(here / "beside")
    out, _ = call("resume", "../stopped", "--json")
    assert [e["version"] for e in events(out) if e["event"] == "committed"] == [3, 4]
    bits = [(here / name / "model.safetensors").read_bytes() for name in ("undisturbed", "stopped")]
    assert bits[0] == bits[1]


def test_a_resumed_run_shows_what_was_lost_and_measured_before(here):
    """It is interrupted, and so measured, at version 2, and then at its end only."""
    more = ['workload.reliability={name="Unreliable",train=0.5}', "evaluation.every=100", "scheduler.rounds=6"]
    spec = with_stopper(here)
    (here / "stop now").write_text("")
    call("run", spec, "-q", "--folder", "stopped", *more, code=130)
    with RunStore("stopped", "read") as store:
        lost, measured = len(store.events("lost")), store.metrics("accuracy", "pooled")[-1]
    assert lost > 0
    assert measured["version"] == 2
    shown = [e for e in events(call("resume", "stopped", "--json")[0]) if e["event"] == "committed"]
    with RunStore("stopped", "read") as store:
        kinds = [event["kind"] for event in store.events()]
    commits = [at for at, kind in enumerate(kinds) if kind == "commit"]
    assert kinds[: commits[2]].count("lost") >= lost
    assert [e["lost"] for e in shown] == [kinds[:at].count("lost") for at in commits[2:]]
    assert [e["value"] for e in shown[:-1]] == [measured["value"]] * 3


@pytest.mark.parametrize("command", ["resume", "show", "compare", "report"])
def test_a_folder_without_a_run(here, command):
    _, err = call(command, "runs/none", code=3)
    assert (
        err
        == "partwise: RunStore('runs/none'): there must be a run's record.sqlite, got no folder. Name a run's folder.\n"
    )


def test_nothing_to_resume(here):
    call("run", "tiny.toml", "-q", "--folder", "whole")
    _, err = call("resume", "whole", code=3)
    assert err == "partwise: whole: there must be something left to do, got a run that ended: done. Run it again.\n"


def test_resume_without_the_parts(here):
    spec = with_stopper(here, "soon_gone.py")
    (here / "stop now").write_text("")
    call("run", spec, "-q", "--folder", "stopped", code=130)
    (here / "soon_gone.py").rename(here / "gone.py")
    for name in [n for n in sys.modules if n.startswith("soon_gone")]:
        del sys.modules[name]
    _, err = call("resume", "stopped", code=3)
    assert "stopped/spec.toml: 1 fault in the specification:" in err
    assert f"server.0.name: the file must exist, got {here}/soon_gone.py." in err
    (here / "stopped" / "spec.toml").unlink()
    _, err = call("resume", "stopped", code=3)
    assert err.startswith("partwise: stopped: needs its spec.toml, got none: the run was made in Python of parts that")
    assert err.endswith("Go on from there: experiment.run('stopped', resume=True).\n")


def test_run_that_was_killed_before_it_wrote_down_what_it_is(tmp_path):
    RunStore(tmp_path / "run").close()
    _, err = call("resume", tmp_path / "run", code=3)
    assert "run: there must be a run that has begun, got one that was killed before it wrote down what it is." in err


def test_resume_refuses_a_specification_that_was_edited(tmp_path):
    """The record says of a run what it began with; half of it with another learning rate would not be told."""
    (tmp_path / "tiny.toml").write_text(TINY)
    call("run", tmp_path / "tiny.toml", "--folder", tmp_path / "run", "--quiet")
    with RunStore(tmp_path / "run") as store:
        store.set_meta(status="running")
    spec = tmp_path / "run" / "spec.toml"
    written = spec.read_text()
    spec.write_text(written.replace("rounds = 4", "rounds = 6"))
    _, err = call("resume", tmp_path / "run", code=3)
    assert "spec.toml: must be as the run wrote it, got one that was changed since" in err
    spec.write_text(written)
    call("resume", tmp_path / "run", "--quiet")


@pytest.mark.parametrize(("code", "shown"), [("", ""), ("0", "0"), ("'bye'", "'bye'")])
def test_a_part_that_exits_is_no_run_that_is_done(here, code, shown):
    text = "import sys\nfrom partwise.algorithms import FedAvg\nclass Exits(FedAvg):\n"
    (here / "exits.py").write_text(f"{text}    def plan(self, *given):\n        sys.exit({code})\n")
    _, err = call("run", "tiny.toml", "-q", "--folder", "it", "algorithm.name=exits.py:Exits", code=1)
    assert err == (
        f"partwise: a part called sys.exit({shown}), which ended the run. Have it raise an error instead. "
        "See: partwise show it\n"
    )


def test_a_file_of_parts_that_exits_is_a_fault(here):
    (here / "exits.py").write_text("import sys\nsys.exit(0)\n")
    _, err = call("run", "tiny.toml", "-q", "--folder", "it", "algorithm.name=exits.py:Exits", code=2)
    assert "exits.py must run, got SystemExit: 0. Try python exits.py." in err
