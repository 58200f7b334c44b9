"""The heap of this process to the page: what is taken now, and the most that was taken while something ran.

glibc keeps a high-water mark of the memory that it has mapped (``malloc_stats``). Here every larger allocation is
made to be mapped, so that the mark is that of the heap; resident memory would be far too coarse.
"""

import ctypes
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

# mallopt's parameters (malloc.h); everything of a page or more is mapped for itself, and nothing taken in advance.
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_PAGE = 4096


class _Info(ctypes.Structure):
    """``struct mallinfo2``."""

    _fields_ = [
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")),
        *((name, ctypes.c_size_t) for name in ("uordblks", "fordblks", "keepcost")),
    ]


class Heap:
    """glibc's heap. Making one changes how this process allocates for good: use a process of its own.

    Raises ``UnsupportedError`` where the C library is not glibc 2.33 or newer.
    """

    def __init__(self):
        self._libc = ctypes.CDLL(None)
        if not hasattr(self._libc, "mallinfo2"):
            raise UnsupportedError("the heap can only be measured with glibc 2.33 or newer; leave out the measurement")
        self._libc.mallinfo2.restype = _Info
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.malloc.argtypes = [ctypes.c_size_t]
        self._libc.mallopt(_M_TOP_PAD, 0)
        self._libc.mallopt(_M_MMAP_THRESHOLD, _PAGE)
        self._libc.mallopt(_M_MMAP_MAX, 1 << 16)

    def used_bytes(self) -> int:
        """What is taken now."""
        info = self._libc.mallinfo2()
        return info.uordblks + info.hblkhd

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        """The most that ``run`` takes on top of what is taken already; what is smaller than a page, at its end."""
        self._fill()
        before = self._libc.mallinfo2()
        run()
        after = self._libc.mallinfo2()
        return self._mark() - before.hblkhd + after.uordblks - before.uordblks

    def _fill(self) -> None:
        """Take for good what could serve unseen: gaps of a page or more, and what is free below the mark."""
        mapped = self._libc.mallinfo2().hblkhd
        while self._libc.mallinfo2().hblkhd == mapped:
            self._libc.malloc(_PAGE)
        self._libc.malloc(max(self._mark() - self._libc.mallinfo2().hblkhd, _PAGE))

    def _mark(self) -> int:
        found = re.search(r"max mmap bytes\s*=\s*(\d+)", captured(self._libc.malloc_stats))
        assert found is not None
        return int(found[1])


def captured(report: Callable[[], Any]) -> str:
    """What a function of a C library writes to the descriptors of stdout and stderr, past Python."""
    flush = ctypes.CDLL(None).fflush
    with tempfile.TemporaryFile() as file:
        flush(None)
        saved = [os.dup(1), os.dup(2)]
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            report()
        finally:
            flush(None)
            for descriptor, copy in enumerate(saved, start=1):
                os.dup2(copy, descriptor)
                os.close(copy)
        file.seek(0)
        return file.read().decode(errors="replace")
