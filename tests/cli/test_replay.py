from __future__ import annotations

import pytest

from partwise.experiment.log import LOG
from toy_cli import call


@pytest.mark.parametrize(("on", "messages"), [("simulate", 9), ("processes", 25)])  # a relay sends fewer
def test_a_run_comes_out_the_same(here, on, messages):
    call("run", "tiny.toml", "-q", "--folder", "first", "--on", on)
    out, _ = call("replay", "first", "--into", "again")
    said = f"The same, bit by bit: 17 records and the final model, from {messages} messages and 4 versions."
    assert out.splitlines()[-2:] == [said, "The run made again is in again"]
    assert (here / "again" / "spec.toml").read_text() == (here / "first" / "spec.toml").read_text()
    out, _ = call("compare", "first", "again")
    assert out.splitlines()[-1] == f"The logs of first and again are the same, {messages} messages."
    assert call("replay", "again", "-q") == ("", "")
    _, err = call("replay", "first", "--into", "again", code=2)
    assert err == "partwise: --into again: must be new or empty, got a folder with files. Name another.\n"


def test_a_run_that_diverged_comes_out_the_same(here):
    call("run", "tiny.toml", "-q", "--folder", "first", "algorithm.local.optimizer.lr=1e30", code=1)


def test_a_run_that_chose_its_executor_comes_out_the_same(here):
    auto = "runtime.executor={name='Auto', trial_seconds=0.05}"
    call("run", "tiny.toml", "-q", "--folder", "first", "workload.profiles=LogNormal", auto)
    assert "by a trial" in call("show", "first")[0]
    out, _ = call("replay", "first")
    assert out.splitlines()[-1].startswith("The same, bit by bit: ")


def test_one_that_does_not(here):
    call("run", "tiny.toml", "-q", "--folder", "first")
    log = here / "first" / LOG
    log.write_bytes(log.read_bytes()[: 8 + 20 * 8])
    _, err = call("replay", "first", code=1)
    assert err.startswith("partwise: first did not come out the same. Record 14 is missing, 'reply' at 0.0 s, client ")
    assert err.endswith(": log.bin ends before it, with message 8.\n")


def test_no_run(here):
    _, err = call("replay", "nowhere", code=3)
    assert err == "partwise: nowhere: there must be a run's log.bin, got none. Name a run's folder.\n"
