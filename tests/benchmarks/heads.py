"""How much memory heads on frozen features take for each row in training, as Markdown for docs/own-images.md.

    python -m tests.benchmarks.heads        two minutes

Rows of 1,280 random numbers, as Lite0 gives pooled; one setting of each kind. What is told is how much the peak grows
from 10,000 to 20,000 rows, for each of them, with two classes, and how much more that is with 200, for each of these:
what a program takes anyway is not in it. Support vector machines are left out: up to 20,000 rows they compare each with
each.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from stages.cli import guard
from stages.params import kind_module
from stages.transfers import Part, TrainingData

FEW, MANY = 10_000, 20_000
TWO, SEVERAL = 2, 200
WIDTH = 1280
KINDS: dict[str, dict[str, Any]] = {
    "nearest_mean": {},
    "knn": {"k": [5]},
    "logistic": {"C": [0.001]},
    "lda": {"shrinkage": ["auto"]},
    "lda_probe": {"shrinkage": ["auto"], "C": [0.1]},
    "ridge": {"alpha": [100.0]},
    "mlp": {"hidden": [256], "epochs": 2},
}


def fit(kind: str, classes: int, rows: int) -> None:
    """Fit a head, a fifth of the rows for validation: what a process of its own does."""
    random = np.random.default_rng(0)

    def part(count: int) -> Part:
        labels = random.integers(0, classes, count)
        features = random.standard_normal((count, 1, WIDTH), dtype=np.float32)
        features[:, 0, 0] += labels
        return Part(features, labels, None, None)

    module, names = kind_module("transfers", kind), [str(number) for number in range(classes)]
    module.fit(module.Params(kind=kind, **KINDS[kind]), TrainingData(names, part(rows * 4 // 5), part(rows // 5)), 0)


def of_a_row(kind: str, classes: int) -> float:
    """Return how many bytes the peak grows by for each row."""
    from tests.benchmarks.extract import run

    few, many = (run("tests.benchmarks.heads", kind, str(classes), str(rows)).peak_mib for rows in (FEW, MANY))
    return (many - few) * 2**20 / (MANY - FEW)


def main() -> None:
    """Print a row for each kind; with arguments, fit one."""
    if sys.argv[1:]:
        kind, classes, rows = sys.argv[1:]
        fit(kind, int(classes), int(rows))
        return
    row = f"a row of {WIDTH:,} numbers ({4 * WIDTH / 1000:.1f} kB)"
    print(f"| kind | kB of {row} | times the row | bytes more of a row and class |\n|---|---|---|---|")
    for kind in KINDS:
        two, several = of_a_row(kind, TWO), of_a_row(kind, SEVERAL)
        more = max(0.0, (several - two) / (SEVERAL - TWO))
        print(f"| `{kind}` | {two / 1000:.0f} | {two / (4 * WIDTH):.1f} | {more:.0f} |", flush=True)


if __name__ == "__main__":
    guard(main)
