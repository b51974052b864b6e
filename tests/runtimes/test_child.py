from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time

import pytest

from partwise.runtimes import child

HOW_MUCH_IS_GIVEN_BACK = """
import resource, sys
from pathlib import Path
import torch
from partwise.runtimes import child

def memory_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

if sys.argv[1] == "kept":
    child.keep_pages()
blocks = [torch.ones(1 << 20) for _ in range(16)]  # 4 MiB each
before = memory_bytes()
del blocks
print((before - memory_bytes()) / (64 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
@pytest.mark.parametrize("what", ["kept", "not kept"])
def test_pages_are_kept(what):
    """In a process of its own: where memory goes depends on what a process has done before."""
    command = [sys.executable, "-c", HOW_MUCH_IS_GIVEN_BACK, what]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (float(ran.stdout) < 0.5) == (what == "kept")


def test_where_the_c_library_has_no_such_setting_nothing_happens(monkeypatch):
    monkeypatch.setattr(child.ctypes, "CDLL", lambda name: object())
    child.keep_pages()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was killed by SIGKILL"),
        (getattr(signal, "SIGRTMIN", 34) + 6, f"was killed by signal {getattr(signal, 'SIGRTMIN', 34) + 6}"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere other numbers have no name")
def test_a_process_that_any_signal_ended_is_told_of(number, said):
    process, sock = child.start(lambda _: signal.pause(), closing=())
    try:
        os.kill(process.pid, number)
        process.join()
        assert child.how_it_ended(process) == said
    finally:
        child.end(process, sock)


def test_a_process_that_takes_a_while_to_die_is_told_of():
    """Its socket is closed before its exit code is there: on a loaded machine, well before."""

    def slow(sock):
        sock.close()
        time.sleep(0.5)
        os._exit(3)

    process, sock = child.start(slow, closing=())
    try:
        assert sock.recv(1) == b""
        assert child.how_it_ended(process) == "ended with exit code 3"
    finally:
        child.end(process, sock)
