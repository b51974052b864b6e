from __future__ import annotations

import ctypes
import platform
import resource
import socket
import struct
from functools import partial
from pathlib import Path

import pytest
import torch

from partwise.runtimes import child

BLOCKS, BLOCK_BYTES = 16, 4 << 20
MMAP_THRESHOLD = -3  # of malloc.h


def memory_bytes() -> int:
    """Of this process, as the system counts it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_of_what_was_freed(sock: socket.socket, *, is_kept: bool) -> None:
    """In a child: how many bytes of large tensors the system gets back once they have gone."""
    if is_kept:
        child.keep_pages()
    else:  # the rule that the C library begins with; with time it moves, and a child inherits where it has come to
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 128 << 10)
    found = [torch.ones(BLOCK_BYTES // 4) for _ in range(BLOCKS)]
    before = memory_bytes()
    del found
    sock.sendall(struct.pack("<q", before - memory_bytes()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other rules")
@pytest.mark.parametrize("is_kept", [True, False])
def test_pages_are_kept(is_kept):
    process, sock = child.start(partial(memory_of_what_was_freed, is_kept=is_kept), closing=[])
    (given_back,) = struct.unpack("<q", sock.recv(8, socket.MSG_WAITALL))
    child.end(process, sock)
    assert (given_back < 0.5 * BLOCKS * BLOCK_BYTES) == is_kept


def test_where_the_c_library_has_no_such_setting_nothing_happens(monkeypatch):
    monkeypatch.setattr(child.ctypes, "CDLL", lambda name: object())
    child.keep_pages()
