"""Memory that was freed is used again, without new pages from the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from stages.memory import available_memory

PROGRAM = """
import resource, sys
if sys.argv[1] == "kept":
    from stages.memory import keep_freed_memory
    keep_freed_memory()
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    maps = [np.ones(megabytes * 2**20, np.uint8) for megabytes in (24, 24, 24, 24, 96)]

for _ in range(3):
    step()
before = faults()
for _ in range(10):
    step()
print(faults() - before)
"""


def test_what_is_left_of_memory_is_less_than_all_and_falls_when_some_is_taken() -> None:
    all_of_it = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    before = available_memory()
    assert 0 < before < all_of_it
    taken = np.ones(2**26)  # 512 MiB
    assert available_memory() < before - taken.nbytes / 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library alone has these settings")
def test_blocks_of_many_megabytes_are_used_again() -> None:
    given, kept = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True)) for how in ("given", "kept")
    )
    assert given > 10_000  # ten times 192 MiB are 491,520 pages of 4 KiB
    assert kept < 100
