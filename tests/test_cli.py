"""The command line, as its users meet it: what is printed, and the exit code."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from importlib import metadata
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from partwise import __version__
from partwise.cli import app
from partwise.cli.doctor import findings
from partwise.cli.views import Json, Lines, Live, Quiet, view_for
from partwise.cli.watch import Header, Notice, Snapshot
from partwise.experiment.evaluate import Score

ROOT = Path(__file__).resolve().parent.parent
TINY = """\
name = "tiny"
[workload]
name = "LeafSynthetic"
num_clients = 7
[algorithm]
name = "FedAvg"
[scheduler]
name = "Synchronous"
cohort = 3
rounds = 4
"""

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


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a small specification in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def call(*args, code=0):
    """Run a command in this process; what it printed, and what it said was wrong."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.exit_code}: {result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout, result.stderr


def events(stdout):
    return [json.loads(line) for line in stdout.splitlines()]


# ---- starting -------------------------------------------------------------------------------------------------------


def python(*args):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=60, check=False)


def test_help_answers_at_once():
    took = []
    for _ in range(3):
        began = time.perf_counter()
        ran = python("-m", "partwise", "--help")
        took.append(time.perf_counter() - began)
    assert ran.returncode == 0
    assert min(took) < 0.5, took
    commands = re.findall(r"^  (\w+) ", ran.stdout, re.MULTILINE)
    assert set(commands) >= {"run", "resume", "list", "show", "compare", "report", "parts", "data", "demo", "doctor"}
    said = " ".join(ran.stdout.split())
    for code in ("0 done", "1 the run failed", "2 the specification", "3 nothing to resume", "130 interrupted"):
        assert code in said
    assert "..." not in ran.stdout.replace("[ARGS]...", "")  # no description is cut off


def test_help_of_every_command_needs_nothing_heavy():
    code = """
import sys
from typer.testing import CliRunner
from partwise.cli import app
for command in ("run", "resume", "list", "show", "compare", "report", "parts", "data", "demo", "doctor"):
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
print(sorted({"torch", "numpy", "matplotlib", "pandas", "jinja2"} & set(sys.modules)))
"""
    ran = python("-c", code)
    assert (ran.returncode, ran.stdout.strip()) == (0, "[]"), ran.stderr


def test_version():
    assert call("--version")[0] == f"partwise {__version__}\n"


def test_no_command_is_help():
    assert "Usage: partwise" in CliRunner().invoke(app, []).output


def test_the_command_is_installed():
    if metadata.packages_distributions().get("partwise") is None:
        pytest.skip("Partwise is not installed here, only found")
    (found,) = metadata.entry_points(group="console_scripts", name="partwise")
    assert found.value == "partwise.cli:main"


# ---- run ------------------------------------------------------------------------------------------------------------


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


def test_debug_shows_the_traceback(here):
    result = CliRunner().invoke(app, ["run", "tiny.toml", "scheduler.cohort=99", "--debug"])
    assert isinstance(result.exception, ValueError)
    result = CliRunner().invoke(app, ["run", "tiny.toml", "--debug", "algorithm.local.optimizer.lr=1e30"])
    assert "DivergedError" in type(result.exception.__cause__).__name__


def test_a_folder_that_cannot_be_written(here):
    (here / "runs").write_text("a file")
    _, err = call("run", "tiny.toml", code=1)
    assert err.startswith("partwise: new_run_folder('runs'): needs a folder")
    assert err.endswith("Name another.\n")


def test_another_runtime(here):
    from partwise.experiment.spec import load

    call("run", "tiny.toml", "--on", "simulate", "-q", "--folder", "a", "scheduler.rounds=1")
    assert type(load("a/spec.toml").runtime).__name__ == "Simulate"
    from partwise.cli.run import On, _load

    assert type(_load(here / "tiny.toml", [], On.processes).runtime).__name__ == "Processes"


# ---- interrupted and resumed ----------------------------------------------------------------------------------------


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


# ---- looking --------------------------------------------------------------------------------------------------------


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


def test_list_of_nothing(here):
    assert call("list")[0] == "There are no runs in runs. Make one: partwise demo\n"


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


def test_show_names_those_who_had_trouble(here):
    call("run", "tiny.toml", "algorithm.local.optimizer.lr=1e30", "-q", "--folder", "bad", code=1)
    out, _ = call("show", "bad")
    assert re.search(r"clients lost or refused: \d+\n  \w+.* refused at version 0: stream 'model' must be finite", out)


def test_compare(two_runs):
    out, _ = call("compare", two_runs / "slow", two_runs / "quick", "--target", "0.01")
    lines = out.splitlines()
    assert lines[0] == "accuracy (pooled); bytes go both ways"
    assert "rounds to 0.010" in lines[1].replace("0.0100", "0.010")
    assert [line.split()[0] for line in lines[2:]] == ["slow", "quick"]
    rows = json.loads(call("compare", two_runs / "slow", two_runs / "quick", "--json", "--target", "2")[0])
    assert [r["name"] for r in rows] == ["slow", "quick"]
    assert [r["target_version"] for r in rows] == [None, None]
    assert "never" in call("compare", two_runs / "slow", "--target", "2")[0]


def test_compare_by_what_was_not_measured(two_runs):
    _, err = call("compare", two_runs / "slow", two_runs / "quick", "--metric", "auc", code=2)
    assert err.startswith("partwise: compare(2 runs): all must have recorded auc, got ")


def test_report(two_runs, tmp_path):
    out, _ = call("report", two_runs / "slow", two_runs / "quick", "--out", tmp_path / "r.html")
    assert out == f"The report is in {tmp_path / 'r.html'}\n"
    assert "quick" in (tmp_path / "r.html").read_text()


def test_parts():
    out, _ = call("parts")
    assert re.search(r"^algorithms +FedAvg +Every client trains the whole model", out, re.MULTILINE)
    assert re.search(r"^ +TopK ", out, re.MULTILINE)
    out, _ = call("parts", "FedProx")
    assert out.startswith("FedProx  algorithms\n")
    assert re.search(r"^  mu +float +0\.01 +strength of the pull", out, re.MULTILINE)
    assert re.search(r"^  weights +'uniform' \| 'samples' \| 'unbiased' +'samples'", out, re.MULTILINE)
    assert "Source: Li et al." in out
    assert re.search(r"^  f +int +must be given ", call("parts", "Krum")[0], re.MULTILINE)
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


def test_data_show(here):
    out, _ = call("data", "show", "tiny.toml", "workload.num_clients=9", "--out", "picture.png")
    lines = out.splitlines()
    assert lines[0].startswith("LeafSynthetic(")
    assert lines[1] == "9 clients"
    assert re.fullmatch(r"[\d,]+ examples; per client min \d+, p10 .*", lines[2])
    assert lines[-1] == "The picture is in picture.png"
    assert (here / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(call("data", "show", "tiny.toml", "--json")[0])["clients"] == 7


def test_doctor(monkeypatch):
    found = {f.what: f for f in findings()}
    assert found["Python"].state == found["this folder"].state == "ok"
    assert found["threads"].said.startswith("torch would use ")
    out, _ = call("doctor")
    assert "partwise" in out


def test_doctor_says_which_extra_brings_what(monkeypatch):
    lines = [
        "torch>=2.4",
        "zebra>=1",
        "pandas>=2 ; extra == 'tables'",
        "lion>=1; extra == 'tables'",
        'tomli; python_version < "3.11"',
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: lines)

    def version(name):
        if name in {"zebra", "lion"}:
            raise metadata.PackageNotFoundError(name)
        return "1.5"

    monkeypatch.setattr(metadata, "version", version)
    found = {f.what: (f.state, f.said) for f in findings()}
    assert found["torch"] == ("ok", "1.5")
    assert found["zebra"] == ("wrong", "pip install zebra")
    assert found["extra tables"] == ("missing", "lion: pip install 'partwise[tables]'")
    assert "tomli" not in found
    call("doctor", code=1)


# ---- the demo -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo-fedavg.toml", "demo-fedsubavg.toml"])
def test_demo_specifications_are_found_and_differ_in_the_algorithm_only(name):
    from partwise.cli.demo import demo_spec
    from partwise.experiment.spec import load

    assert demo_spec(name).is_file()
    one, other = load(demo_spec(name)), load(demo_spec("demo-fedavg.toml"))
    assert repr((one.workload, one.scheduler, one.evaluation, one.seed)) == repr(
        (other.workload, other.scheduler, other.evaluation, other.seed)
    )
    assert one.algorithm.local == other.algorithm.local


def test_demo(here, monkeypatch):
    import partwise.cli.demo

    for name in partwise.cli.demo.DEMOS:
        (here / name).write_text(TINY.replace("tiny", name.removesuffix(".toml")))
    monkeypatch.setattr(partwise.cli.demo, "demo_spec", lambda name: here / name)
    out, _ = call("demo", "--rounds", 2)
    assert "demo-fedavg: 2 rounds, 7 clients" in out
    assert "demo-fedsubavg: 2 rounds, 7 clients" in out
    assert (here / "report.html").resolve().as_uri() in out
    assert "Next:\n  partwise run" in out
    assert (here / "report.html").is_file()


# ---- views ----------------------------------------------------------------------------------------------------------

HEADER = Header("tiny", "runs/tiny", 20, 7, "auc", "round")
SHOT = Snapshot(
    version=3, total=20, loss=0.625, scores=[Score("auc", "pooled", 0.75)], value=0.75, best=0.8125, uplink=1_500_000,
    downlink=2_500_000, seconds=12.5, clients_per_second=41.6, seconds_left=130.0, lost=2, refused=1,
)  # fmt: skip
NOTICE = Notice("lost", 3, "json.tool", 2, "in train: it broke")


def test_views_are_chosen_by_option_and_place():
    assert type(view_for(as_json=True, quiet=True)) is Json
    assert type(view_for(as_json=False, quiet=True)) is Quiet
    assert type(view_for(as_json=False, quiet=False)) is Lines  # pytest's output is no terminal


def test_live_view():
    out = io.StringIO()
    view = Live(Console(file=out, force_terminal=True, width=100, color_system=None))
    view.prepare("reading the data")
    view.begin(HEADER)
    view.show(SHOT)
    view.notice(NOTICE)
    view.end("target reached: auc 0.75", SHOT._replace(value=0.7575))
    view.close()
    last = out.getvalue().split("╭")[-1]
    for words in (
        "tiny",
        "7 clients",
        "round 3/20",
        "2 min left",
        "AUC",
        "0.7575",
        "0.8125",
        "0.6250",
        "1.50 MB",
        "2.50 MB",
    ):
        assert words in last
    assert re.search(r"2/1\s", last)
    assert "client 3 (json.tool) lost at version 2: in train: it broke" in last
    assert "target reached" in last


def test_live_view_before_anything_is_known():
    out = io.StringIO()
    view = Live(Console(file=out, force_terminal=True, width=100, color_system=None))
    view.prepare("reading the data")
    view.begin(HEADER._replace(total=0))
    view.end("DivergedError: long", None)
    assert "reading the data" in out.getvalue()
    assert "failed" in out.getvalue()
    assert "long" not in out.getvalue()


def test_lines_view_says_the_first_troubles_and_counts_the_rest(capsys):
    view = Lines()
    view.begin(HEADER)
    for _ in range(12):
        view.notice(NOTICE)
    view.show(SHOT)
    view.show(SHOT._replace(scores=[]))  # not evaluated, and too soon
    lines = capsys.readouterr().out.splitlines()
    assert lines.count(str(NOTICE)) == 10
    assert lines[-2] == "more lost or refused clients are only counted; `partwise show` has them all"
    assert lines[-1] == (
        "round 3/20  auc 0.7500 (best 0.8125)  train loss 0.6250  up 1.50 MB  down 2.50 MB  42 clients/s  "
        "2 lost, 1 refused  2 min left"
    )


def test_json_view_of_a_lost_client(capsys):
    Json().notice(NOTICE)
    assert json.loads(capsys.readouterr().out) == {
        "event": "lost", "client": 3, "name": "json.tool", "version": 2, "reason": "in train: it broke",
    }  # fmt: skip
