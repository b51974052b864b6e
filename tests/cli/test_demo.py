from __future__ import annotations

import pytest

import partwise.cli.demo
from partwise.cli.demo import demo_spec
from partwise.experiment.spec import load
from toy_cli import TINY, call


@pytest.mark.parametrize("name", ["demo-fedavg.toml", "demo-fedsubavg.toml"])
def test_demo_specifications_are_found_and_differ_in_the_algorithm_only(name):
    assert demo_spec(name).is_file()
    one, other = load(demo_spec(name)), load(demo_spec("demo-fedavg.toml"))
    assert repr((one.workload, one.scheduler, one.evaluation, one.seed)) == repr(
        (other.workload, other.scheduler, other.evaluation, other.seed)
    )
    assert one.algorithm.local == other.algorithm.local


def test_demo(here, monkeypatch):
    for name in partwise.cli.demo.DEMOS:
        (here / name).write_text(TINY.replace("tiny", name.removesuffix(".toml")))
    monkeypatch.setattr(partwise.cli.demo, "demo_spec", lambda name: here / name)
    out, _ = call("demo", "--rounds", 2)
    assert "demo-fedavg: 2 rounds, 7 clients" in out
    assert "demo-fedsubavg: 2 rounds, 7 clients" in out
    assert (here / "report.html").resolve().as_uri() in out
    assert "Next:\n  partwise run" in out
    assert (here / "report.html").is_file()
