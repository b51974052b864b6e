from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import partwise
from partwise.core.errors import CheckpointError
from partwise.monitor import Follower, snapshot
from toy_cli import TINY

SOURCE = {**os.environ, "PYTHONPATH": str(Path(partwise.__file__).parents[1])}


def partwise_command(*arguments):
    return subprocess.Popen([sys.executable, "-m", "partwise", *map(str, arguments), "--quiet"], env=SOURCE)


def until(follower, is_so, seconds=60.0):
    """Look until it is so; the least and the most version that was seen on the way."""
    seen, end = [], time.monotonic() + seconds
    while not is_so(follower.standing()):
        assert time.monotonic() < end, follower.standing()
        time.sleep(0.05)
        follower.refresh()
        seen.append(follower.standing().version)
    return seen


def begun(folder):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return Follower(folder)
        except CheckpointError:
            time.sleep(0.05)
    raise AssertionError("the run did not begin")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["simulate", "processes"])
def test_a_run_that_is_killed_and_resumed_is_followed_to_its_end(tmp_path, runtime):
    """The last checkpoint is from its beginning, so that the resumed run cuts nearly all that was read before."""
    (tmp_path / "tiny.toml").write_text(TINY)
    folder = tmp_path / "run"
    run = partwise_command("run", tmp_path / "tiny.toml", "scheduler.rounds=250", "--folder", folder, "--on", runtime)
    try:
        follower = begun(folder)
        until(follower, lambda now: now.version >= 60)
        assert follower.standing().is_running
        run.send_signal(signal.SIGKILL)
        run.wait()
        until(follower, lambda now: now.status == "killed; can be resumed")
        reached = follower.standing().version
        run = partwise_command("resume", folder)
        seen = until(follower, lambda now: now.status == "done", seconds=120)
        assert run.wait() == 0
    finally:
        run.kill()
        run.wait()
    assert min(seen) < reached  # it was seen to begin again
    now, fresh = snapshot(follower), snapshot(Follower(folder))
    assert now["run"]["version"] == 250
    assert now["run"]["replies"] == 750
    for what in ("metric", "curves", "clients", "incidents"):
        assert now[what] == fresh[what]
