"""What commands say where they cannot write, and how they end: 2, or 1 where the disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from toy_cli import call

COMMANDS = (
    ("report", "ran", "--out"),
    ("timeline", "ran", "--out"),
    ("data", "show", "tiny.toml", "--out"),
    ("replay", "ran", "--into"),
    ("run", "tiny.toml", "-q", "--folder"),
    ("run", "tiny.toml", "-q", "--root"),
    ("attack", "tiny.toml", "--attack", "SignFlip", "--folder"),
    ("deploy", "init", "tiny.toml", "--folder"),
)


@pytest.fixture
def ran(here):
    profiles = "workload.profiles={name='LogNormal', seconds_per_step=0.25, uplink=900.0}"
    call("run", "tiny.toml", "-q", "--folder", "ran", "scheduler.rounds=1", profiles)
    (here / "file").write_text("not a folder")
    return here


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command[::2]))
def test_a_path_that_cannot_be_written(ran, command):
    before = sorted(ran.iterdir())
    for path in ("file/x", "n" * 300):
        _, err = call(*command, path, code=2)
        assert err.startswith("partwise: ")
        assert path in err
        assert err.endswith("Name another.\n")
        assert err.count("\n") == 1
    assert sorted(ran.iterdir()) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is always full")
@pytest.mark.parametrize("command", COMMANDS[:3], ids=lambda command: command[0])
def test_a_full_disk(ran, command):
    _, err = call(*command, "/dev/full", code=1)
    assert err == (
        "partwise: --out /dev/full: must be a place that can be written, got: No space left on device. "
        "Free some space, or name another place.\n"
    )
