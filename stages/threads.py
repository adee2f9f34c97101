"""Work in threads: results in order, and only so many ahead that memory stays flat.

Reading, hashing, decoding and resizing release Python's lock, so threads keep all cores busy without copying a byte.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import RLock
from typing import TypeVar

from stages.cli import UserError

TORCH = RLock()
"""Held while a network is traced, or runs in torch: torch.fx traces by changing what all threads call."""

T = TypeVar("T")
R = TypeVar("R")


def thread_count() -> int:
    """Return how many threads may work at once: TRANSFER_THREADS, else the cores that this process may use."""
    wanted = os.environ.get("TRANSFER_THREADS", "")
    if not wanted:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not (wanted.isascii() and wanted.isdigit() and int(wanted) > 0):
        raise UserError(f"TRANSFER_THREADS is {wanted!r}: set it to a whole number from 1 on")
    return int(wanted)


def in_threads(
    function: Callable[[T], R], items: Iterable[T], threads: int | None = None, ahead: int = 4
) -> Iterator[R]:
    """Yield function(item) for every item, in order, computed in threads (as many as `thread_count` unless told).

    At most `ahead` results per thread wait to be taken. The first error is raised in its place, and what was not yet
    begun is given up.
    """
    with closing(begun_in_threads(function, items, threads or thread_count(), ahead)) as results:
        for result in results:
            yield result()


def begun_in_threads(
    function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int = 4
) -> Generator[Callable[[], R], None, None]:
    """Yield for every item, in order, what waits for function(item) and returns it: see `in_threads`."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= ahead * threads:
                yield waiting.popleft().result
        while waiting:
            yield waiting.popleft().result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
