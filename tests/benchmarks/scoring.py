"""What evaluate takes to score many test images of many classes, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.scoring        two minutes, 5 GB of memory

Predictions are made up: each image's own class gets three standard deviations more than chance. Reading features and
predicting from them are not in it. The obvious way to leave out buckets gives the images of a bucket no weight and
ranks all others anew, bucket by bucket; both give the same figures, which is checked.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.cli import guard
from stages.files import write_table
from stages.scoring.intervals import BUCKETS, replicates
from stages.scoring.metrics import Outcomes, Scores
from stages.scoring.plots import draw_pictures, plot_rows
from stages.scoring.records import outcomes_table
from stages.scoring.suspects import MOST_KEPT, find_suspects
from tests.benchmarks.extract import run

SIZES = ((20_000, 1000), (200_000, 100), (200_000, 1000))
AGAINST = ((20_000, 100), (5_000, 1000))


def made_up(images: int, classes: int) -> Outcomes:
    """Return predictions, as float32 can hold them."""
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, images)
    probabilities = np.empty((images, classes))
    for start in range(0, images, 4096):
        labels = truth[start : start + 4096]
        logits = random.normal(size=(len(labels), classes))
        logits[np.arange(len(labels)), labels] += 3
        odds = np.exp(logits)
        probabilities[start : start + 4096] = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
    names = [f"class {c:04d}" for c in range(classes)], [f"{i:07d}.jpg" for i in range(images)]
    return Outcomes(*names, np.zeros(images, np.int64), None, truth, probabilities)


def score(images: int, classes: int) -> None:
    """Do what evaluate does with predictions, and print most of a row of a table: what a process of its own does."""
    outcomes = made_up(images, classes)
    seconds: list[float] = []

    def timed(step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = step()
        seconds.append(time.perf_counter() - start)
        return value

    with tempfile.TemporaryDirectory() as folder:
        timed(lambda: replicates(outcomes))
        plots = timed(lambda: plot_rows(outcomes))
        timed(lambda: draw_pictures(Path(folder), outcomes, plots))
        timed(lambda: write_table(Path(folder) / "predictions.parquet", outcomes_table(outcomes)))
        timed(lambda: find_suspects([outcomes], MOST_KEPT))
    print(f"| {images:,} | {classes:,} | {' | '.join(f'{s:.1f}' for s in seconds)} | ", end="", flush=True)


def against(images: int, classes: int) -> str:
    """Return a row of a table: leaving out buckets, and the obvious way."""
    outcomes = made_up(images, classes)
    units = np.random.default_rng(1).integers(0, BUCKETS, images)
    starts = [time.perf_counter()]
    found = Scores(outcomes.truth, outcomes.probabilities, units).left_out(BUCKETS)
    starts.append(time.perf_counter())
    scores = Scores(outcomes.truth, outcomes.probabilities, units)
    blocks = np.array_split(1.0 - np.eye(BUCKETS), 64)
    obvious = [scores.figures(block) for block in blocks]
    starts.append(time.perf_counter())
    for figure, values in found.items():
        np.testing.assert_allclose(values[1:], np.concatenate([o[figure] for o in obvious]), atol=1e-12)
    ours, theirs = np.diff(starts)
    return f"| {images:,} | {classes:,} | {theirs:.1f} | {ours:.2f} | {theirs / ours:.0f} |"


def main() -> None:
    """Print the tables; with arguments, score so many images of so many classes."""
    if sys.argv[1:]:
        images, classes = map(int, sys.argv[1:])
        score(images, classes)
        return
    print("| images | classes | obvious, s | leaving out, s | ratio |\n|---|---|---|---|---|")
    for size in AGAINST:
        print(against(*size), flush=True)
    steps = "figures and intervals, s | curves, s | pictures, s | predictions.parquet, s | suspects, s"
    print(f"\n| images | classes | {steps} | peak memory |\n|---|---|---|---|---|---|---|---|")
    for images, classes in SIZES:
        print(f"{run('tests.benchmarks.scoring', str(images), str(classes)).peak_mib:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    guard(main)
