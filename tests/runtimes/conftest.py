"""One thread per process: workers that have several each are in each other's way on a small machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from partwise.runtimes.threads import torch_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):
        yield


@pytest.fixture
def _no_process_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []
