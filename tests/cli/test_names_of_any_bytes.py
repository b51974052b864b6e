"""Folders and clients whose names are no UTF-8, as file systems allow them."""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import pytest

from partwise.core.workload import Workload
from partwise.runtimes.simulate import Simulate
from toy_cli import call
from toy_experiments import People, experiment

FOLDER = os.fsdecode(b"M\xfcller")  # in Latin-1, as an old disk has it


class Named(People):
    def name(self, client: int) -> str:
        return f"{FOLDER} {client}"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_report_and_a_timeline(here):
    made = experiment("memory", Simulate())
    assert isinstance(made.workload, Workload)
    workload = Workload(made.workload.model, Named(), made.workload.metrics)
    replace(made, workload=workload).run(f"{FOLDER}/run")
    call("report", f"{FOLDER}/run", "--out", "report.html")
    assert "M?ller" in (here / "report.html").read_text(encoding="utf-8")
    call("timeline", f"{FOLDER}/run")
    assert "M�ller 0" in (here / "timeline.svg").read_text(encoding="utf-8")
