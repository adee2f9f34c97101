"""How much memory heads on frozen features take for each row in training, as Markdown for docs/own-images.md.

    python -m tests.benchmarks.heads        two minutes

Rows of 1,280 random numbers, as Lite0 gives pooled; one setting of each kind. What is told is how much the peak grows
from 10,000 to 20,000 rows, for each of them, with two classes, and how much more that is with 200, for each of these:
what a program takes anyway is not in it. Support vector machines are left out: up to 20,000 rows they compare each with
each.
"""

from __future__ import annotations

import subprocess
import sys

from stages.cli import guard

FEW, MANY = 10_000, 20_000
TWO, SEVERAL = 2, 200
WIDTH = 1280
KINDS = {
    "nearest_mean": {},
    "knn": {"k": [5]},
    "logistic": {"C": [0.001]},
    "lda": {"shrinkage": ["auto"]},
    "lda_probe": {"shrinkage": ["auto"], "C": [0.1]},
    "ridge": {"alpha": [100.0]},
    "mlp": {"hidden": [256], "epochs": 2},
}
PROGRAM = """
import sys
from importlib import import_module
import numpy as np
from stages.store.cache import peak_memory_bytes
from stages.transfers import Part, TrainingData
random = np.random.default_rng(0)
def part(rows):
    labels = random.integers(0, {classes}, rows)
    features = random.standard_normal((rows, 1, {width}), dtype=np.float32)
    features[:, 0, 0] += labels
    return Part(features, labels, None, None)
kind = import_module("stages.transfers.{kind}")
data = TrainingData(list(map(str, range({classes}))), part({rows} * 4 // 5), part({rows} // 5))
kind.fit(kind.Params(kind="{kind}", **{keys}), data, 0)
print(peak_memory_bytes())
"""


def of_a_row(kind: str, classes: int) -> float:
    """Return how many bytes the peak grows by for each row."""
    peaks = []
    for rows in (FEW, MANY):
        program = PROGRAM.format(kind=kind, rows=rows, classes=classes, keys=KINDS[kind], width=WIDTH)
        done = subprocess.run([sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    return (peaks[1] - peaks[0]) / (MANY - FEW)


def main() -> None:
    """Print a row for each kind."""
    row = f"a row of {WIDTH:,} numbers ({4 * WIDTH / 1000:.1f} kB)"
    print(f"| kind | kB of {row} | times the row | bytes more of a row and class |\n|---|---|---|---|")
    for kind in KINDS:
        two, several = of_a_row(kind, TWO), of_a_row(kind, SEVERAL)
        more = max(0.0, (several - two) / (SEVERAL - TWO))
        print(f"| `{kind}` | {two / 1000:.0f} | {two / (4 * WIDTH):.1f} | {more:.0f} |", flush=True)


if __name__ == "__main__":
    guard(main)
