"""Starting and ending worker processes by fork: they inherit the programs, so nothing is pickled."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess

import torch

__all__ = ["end", "how_it_ended", "keep_pages", "start"]

_PR_SET_PDEATHSIG = 1
_HARD = 2  # omp_pause_hard
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGE_BYTES = 1 << 30, 32 << 20  # the latter is the most that glibc takes
_PATIENCE_SECONDS = 0.2  # for a worker to see that the socket is closed
_DYING_SECONDS = 5.0  # for the end of one that has closed it: on a loaded machine it takes a while


def start(
    serve: Callable[[socket.socket], None], *, closing: Sequence[socket.socket]
) -> tuple[ForkProcess, socket.socket]:
    """Fork a process that serves a socket; the process and the other end.

    Args:
        serve: runs in the child, as long as the child lives.
        closing: sockets of the parent that are none of the child's business: while the child had them open, nobody
            would see them closed.

    Raises:
        OSError: this system cannot fork.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise OSError(
            f"Processes(): needs an operating system that can fork, got {sys.platform}. Use Simulate() or Linux."
        )
    ours, theirs = socket.socketpair()
    is_paused, threads, parent = _pause_openmp(), torch.get_num_threads(), os.getpid()

    def run() -> None:
        _settle_in(parent, threads if is_paused else 1)
        for other in [ours, *closing]:
            other.close()
        serve(theirs)

    process = multiprocessing.get_context("fork").Process(target=run, daemon=True)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with warnings.catch_warnings():
            # Other threads of this process (a progress bar's, torch's) are not there in the child, which needs none.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
    return process, ours


def _settle_in(parent: int, threads: int) -> None:
    """In the child: leave Ctrl-C to the parent, die with it, and compute with as many threads as it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before that
    torch.set_num_threads(threads)


def keep_pages() -> None:
    """Have the C library keep freed memory for what this process allocates next, where it is glibc.

    It gives large blocks back to the system and asks for them again in every training step of a convolution, and the
    system clears them: a fifth of the step's time.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _pause_openmp() -> bool:
    """Have OpenMP end its threads; it starts new ones when it needs them, in the parent and in the child.

    A child that inherits the thread pool on paper only waits for it for ever. Where OpenMP cannot be asked, children
    compute with one thread; then sums of a parent with several threads may differ in the last bit.
    """
    with contextlib.suppress(AttributeError, OSError):
        return bool(ctypes.CDLL(None).omp_pause_resource_all(_HARD) == 0)
    return False


def how_it_ended(process: ForkProcess) -> str:
    """What became of a process that closed its socket: `was killed by SIGKILL`."""
    process.join(_DYING_SECONDS)
    code = process.exitcode
    if code is None:
        return "closed its socket"
    return f"was killed by {_named(-code)}" if code < 0 else f"ended with exit code {code}"


def _named(number: int) -> str:
    """A signal's name; those between the first and the last of real time have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end(process: ForkProcess, sock: socket.socket) -> None:
    """End a process and wait for it: nothing is left of it."""
    sock.close()
    process.join(_PATIENCE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    process.close()
