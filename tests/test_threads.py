"""Threads: results in order, few in memory, errors where they belong."""

from __future__ import annotations

import os
import threading
import time

import pytest

from stages.cli import UserError
from stages.threads import in_threads, thread_count


def test_results_come_in_order_however_long_each_takes() -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_threads(work, range(50), threads=8)) == [number * number for number in range(50)]


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(4, timeout=10)  # broken unless four wait at once
    assert sorted(in_threads(lambda _: together.wait(), range(4), threads=4)) == [0, 1, 2, 3]


def test_only_a_few_results_wait_to_be_taken() -> None:
    begun: list[int] = []
    results = in_threads(begun.append, range(1000), threads=2, ahead=3)
    next(results)
    time.sleep(0.05)
    assert len(begun) <= 6
    results.close()  # type: ignore[attr-defined]


def test_an_error_comes_in_its_place_and_the_rest_is_given_up() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 3:
            raise UserError("three")
        done.append(number)
        return number

    results = in_threads(work, range(1000), threads=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(results)
    assert len(done) < 20


def test_number_of_threads_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_THREADS", "7")
    assert thread_count() == 7
    monkeypatch.delenv("TRANSFER_THREADS")
    assert thread_count() == len(os.sched_getaffinity(0))
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("TRANSFER_THREADS", wrong)
        with pytest.raises(UserError, match=f"TRANSFER_THREADS is '{wrong}': set it to a whole number from 1 on"):
            thread_count()
