"""The heap of this process, to the page: its current size, and its peak during a function call.

glibc keeps a high-water mark of mapped memory (``malloc_stats``). ``Heap`` makes glibc map every allocation of a page
or more, so that the mark is the peak of the heap. Resident memory would be far too coarse.
"""

import ctypes
import os
import re
import tempfile
from collections.abc import Callable
from typing import Any

from ..errors import UnsupportedError

# Parameters of mallopt (malloc.h): map each allocation of a page or more separately, and nothing in advance.
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
    """glibc's heap. The constructor changes how this process allocates, permanently: use a separate process.

    Raises ``UnsupportedError`` if the C library is not glibc 2.33 or newer.
    """

    def __init__(self):
        self._libc = ctypes.CDLL(None)
        if not hasattr(self._libc, "mallinfo2"):
            raise UnsupportedError("the heap can only be measured with glibc 2.33 or newer; plan without --measure")
        self._libc.mallinfo2.restype = _Info
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.malloc.argtypes = [ctypes.c_size_t]
        self._libc.mallopt(_M_TOP_PAD, 0)
        self._libc.mallopt(_M_MMAP_THRESHOLD, _PAGE)
        self._libc.mallopt(_M_MMAP_MAX, 1 << 16)

    def used_bytes(self) -> int:
        """Allocated bytes."""
        info = self._libc.mallinfo2()
        return info.uordblks + info.hblkhd

    def peak_bytes(self, run: Callable[[], Any]) -> int:
        """Peak of the heap during ``run`` above its size before; allocations below a page count as of the end."""
        self._fill()
        before = self._libc.mallinfo2()
        run()
        after = self._libc.mallinfo2()
        return self._mark() - before.hblkhd + after.uordblks - before.uordblks

    def _fill(self) -> None:
        """Allocate the gaps of a page or more and the space below the mark: reuse of them would go unnoticed."""
        mapped = self._libc.mallinfo2().hblkhd
        while self._libc.mallinfo2().hblkhd == mapped:
            self._libc.malloc(_PAGE)
        self._libc.malloc(max(self._mark() - self._libc.mallinfo2().hblkhd, _PAGE))

    def _mark(self) -> int:
        found = re.search(r"max mmap bytes\s*=\s*(\d+)", captured(self._libc.malloc_stats))
        assert found is not None
        return int(found[1])


def captured(report: Callable[[], Any]) -> str:
    """Text that a function of a C library writes to the file descriptors of stdout and stderr."""
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
