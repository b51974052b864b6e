"""A small specification, and the command line called in this process."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from partwise.cli import app

__all__ = ["TINY", "call", "events"]

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


def call(*args, code=0):
    """Run a command in this process; what it printed, and what it said was wrong."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"{result.exit_code}: {result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result.stdout, result.stderr


def events(stdout):
    """What `--json` printed."""
    return [json.loads(line) for line in stdout.splitlines()]
