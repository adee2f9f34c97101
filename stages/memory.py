"""Memory that was freed is used again instead of being given back and asked for anew.

A training step frees and takes maps of some ten megabytes a hundred times. The C library may give blocks of that size
back to the system, which hands out zeroed pages for the next: at worst a tenth of the step. No result changes by it.
Pages of 2 MiB, which torch can ask for, took longer to get than they saved.
"""

from __future__ import annotations

import ctypes
import sys

# mallopt(3) of the GNU C library. 32 MiB is the highest threshold that it takes; the memory of one arena serves the
# thread of the backward pass, too.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, ARENA_MAX = -1, -2, -3, -8


def keep_freed_memory() -> None:
    """Let this process keep what it frees; does nothing where the C library is another."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for option, value in (
        (MMAP_THRESHOLD, 32 * 2**20),
        (TRIM_THRESHOLD, 2**31 - 1),
        (TOP_PAD, 64 * 2**20),
        (ARENA_MAX, 1),
    ):
        mallopt(option, value)
