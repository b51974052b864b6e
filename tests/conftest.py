"""Fixtures that tests of several folders share."""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from toy_sent import RNG

# The same examples in every run, without limits of time, since machines are shared: a test that fails has a fault.
# HYPOTHESIS_PROFILE=explore looks for new ones.
CALM = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("steady", derandomize=True, **CALM)
settings.register_profile("explore", **CALM)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a script: runs would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws does not depend on which tests ran before it in its process."""
    RNG.manual_seed(0)
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def workers_save_what_was_measured() -> None:
    """Where coverage is measured, a worker writes its lines down as it ends, which takes longer than a worker may.

    One that is killed at that leaves half a file, and its lines are lost.
    """
    measures = sys.modules.get("coverage")
    if measures is not None and measures.Coverage.current() is not None:
        from partwise.runtimes import child

        child._PATIENCE_SECONDS = 10.0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data, `data` in $PARTWISE_SHARED or in `shared` beside the repository; skips without it."""
    named = os.environ.get("PARTWISE_SHARED")
    folder = (Path(named) if named else Path(__file__).resolve().parents[2] / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data in {folder}")
    return folder


collect_ignore = [
    "strategies.py",
    "toy_cli.py",
    "toy_federation.py",
    "toy_jobs.py",
    "toy_parts.py",
    "toy_post.py",
    "toy_roster.py",
    "toy_runs.py",
    "toy_stack.py",
    "toy_star.py",
    "wire.py",
]  # shared by tests
