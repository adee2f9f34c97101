"""Memory that was freed is used again, without new pages from the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

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

FREED = """
import psutil
import numpy as np
from stages.memory import give_back_freed_memory, give_back_large_blocks

def held():
    return psutil.Process().memory_info().rss

def leave_holes():
    blocks = [np.ones(size, np.uint8) for _ in range(500) for size in (64 * 1024, 1100)]
    del blocks[::2]
    return blocks

start = held()
staying = leave_holes()
print((held() - start) // 2**20)
give_back_freed_memory()
print((held() - start) // 2**20)
give_back_large_blocks()
for megabytes in (16, 8, 8):
    np.ones(megabytes * 2**20, np.uint8)
print((held() - start) // 2**20)
"""


def test_what_is_left_of_memory_is_what_the_system_says_is_available() -> None:
    import psutil

    assert 0 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform == "linux":
        assert available_memory() < 1.3 * psutil.virtual_memory().available


def test_the_limit_of_a_container_and_of_one_around_it_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("1:cpu:/\n0::/outer/inner\n")

    def left(outer: str, inner: str, cached: int = 0) -> int:
        for folder, limit in ((tmp_path / "outer", outer), (tmp_path / "outer" / "inner", inner)):
            folder.mkdir(exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text("3000\n")
            (folder / "memory.stat").write_text(f"anon 100\ninactive_file {cached}\nactive_file 10\n")
        return available_memory(tmp_path, own)

    assert left("max", "8000") == 5010
    assert left("7000", "8000") == 4010
    assert left("7000", "max", cached=500) == 4510
    assert left("2000", "8000") == 0
    assert left("max", "max") > 10**7
    own.write_text("4:memory:/elsewhere\n")
    assert left("7000", "8000") > 10**7


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library alone has these settings")
def test_blocks_of_many_megabytes_are_used_again() -> None:
    given, kept = (
        int(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True)) for how in ("given", "kept")
    )
    assert given > 10_000  # ten times 192 MiB are 491,520 pages of 4 KiB
    assert kept < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the GNU C library alone gives them back when asked")
def test_what_was_freed_is_given_back() -> None:
    freed, after_it, later = map(int, subprocess.check_output([sys.executable, "-c", FREED], text=True).split())
    assert freed > 30  # MiB: large blocks are kept once some were freed, and small ones between others
    assert after_it < 4
    assert later < 4
