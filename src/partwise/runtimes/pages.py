"""Whether the C library keeps freed memory for what this process allocates next."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_pages", "kept_pages"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGE_BYTES = 1 << 30, 32 << 20  # the latter is the most that glibc takes


def keep_pages() -> None:
    """Have the C library keep freed memory, where it is glibc.

    It gives large blocks back to the system and asks for them again in every step of training, and the system clears
    them: a fifth of the time of a step with convolutions. How large they are depends on what was freed before, so that
    some processes pay and others do not.
    """
    _set(_KEPT_BYTES)


@contextmanager
def kept_pages() -> Iterator[None]:
    """`keep_pages` as long as it takes; then unused memory goes back.

    Afterwards glibc gives back what is above 64 MiB, as it does by itself once a block of 32 MiB was freed.
    """
    keep_pages()
    try:
        yield
    finally:
        _set(2 * _LARGE_BYTES)
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)


def _set(kept_bytes: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
