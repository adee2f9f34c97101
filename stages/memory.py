"""What is left of memory; and what becomes of memory that was freed: used again, or given back to the system.

A training step frees and takes maps of some ten megabytes a hundred times, of more than a hundred where a network is
trained from pixels. The C library may give blocks of that size back to the system, which hands out zeroed pages for the
next: a tenth of the step above a cut, a third from pixels. No result changes by it. Pages of 2 MiB, which torch can ask
for, took longer to get than they saved.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

# mallopt(3) of the GNU C library. Large blocks lie in the heap, too, none in a mapping of its own: 32 MiB is the most
# that one may be asked to begin at. The memory of one arena serves the thread of the backward pass, too.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8


def keep_freed_memory() -> None:
    """Let this process keep what it frees; does nothing where the C library is another."""
    mallopt = _of_the_c_library("mallopt")
    if mallopt is None:
        return
    for option, value in (
        (MMAP_MAX, 0),
        (TRIM_THRESHOLD, 2**31 - 1),
        (TOP_PAD, 64 * 2**20),
        (ARENA_MAX, 1),
    ):
        mallopt(option, value)


def give_back_freed_memory() -> None:
    """Give back pages that are free, also between others that are not; does nothing where the C library is another.

    Where little that stays is taken among much that does not, the free room between it suits nothing, and grows.
    """
    trim = _of_the_c_library("malloc_trim")
    if trim is not None:
        trim(0)


def give_back_large_blocks() -> None:
    """Give back what is free, and from now on every block of some megabytes as soon as it is freed.

    The C library would keep them up to 32 MiB once some were freed. Where images are decoded that saves a fifth of the
    time; where columns of a million rows come and go, it would hold several times what is needed.
    """
    mallopt = _of_the_c_library("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, 3 * 2**20)  # above what the search for splits takes and frees at each of its steps
        mallopt(TRIM_THRESHOLD, 2**24)
    give_back_freed_memory()


def _of_the_c_library(name: str) -> Any:
    """Return a function that the GNU C library alone has, or None."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


def available_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many bytes this process can still take before others are swapped out, or it is killed.

    A container's limit counts (control groups of version 2), and files that lie in memory can be given up. Where the
    system is no Linux that is all the memory there is.
    groups, own : where such limits stand, and which are this process's
    """
    left = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, StopIteration):  # no such file where the system is no Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        left.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with suppress(OSError, StopIteration):
        mine = next(line[3:].lstrip("/") for line in own.read_text().splitlines() if line.startswith("0::"))
        for folder in (groups / mine, *(groups / mine).parents):
            with suppress(OSError, ValueError, KeyError):  # no limit here: no such file, or "max"
                limit, used = (int((folder / file).read_text()) for file in ("memory.max", "memory.current"))
                parts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                left.append(limit - used + int(parts["inactive_file"]) + int(parts["active_file"]))
    return max(0, min(left))
