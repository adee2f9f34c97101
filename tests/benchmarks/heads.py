"""How much memory heads on frozen features take for each row in training, as Markdown for docs/own-images.md.

    python -m tests.benchmarks.heads        two minutes

Rows of 1,280 random numbers, as Lite0 gives pooled, of two classes; one setting of each kind. What is told is how much
the peak grows from 10,000 to 20,000 rows, for each of them: what a program takes anyway is not in it. Support vector
machines are left out: up to 20,000 rows they compare each with each.
"""

from __future__ import annotations

import subprocess
import sys

from stages.cli import guard

FEW, MANY = 10_000, 20_000
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
    labels = random.integers(0, 2, rows)
    features = random.standard_normal((rows, 1, {width}), dtype=np.float32)
    features[:, 0, 0] += labels
    return Part(features, labels, np.eye(2, dtype=np.float32)[labels], None)
kind = import_module("stages.transfers.{kind}")
data = TrainingData(["a", "b"], part({rows} * 4 // 5), part({rows} // 5))
kind.fit(kind.Params(kind="{kind}", **{keys}), data, 0)
print(peak_memory_bytes())
"""


def main() -> None:
    """Print a row for each kind."""
    print(f"| kind | kB of a row of {WIDTH:,} numbers ({4 * WIDTH / 1000:.1f} kB) | times the row |\n|---|---|---|")
    for kind, keys in KINDS.items():
        peaks = []
        for rows in (FEW, MANY):
            program = PROGRAM.format(kind=kind, rows=rows, keys=keys, width=WIDTH)
            done = subprocess.run([sys.executable, "-c", program], text=True, stdout=subprocess.PIPE, check=True)
            peaks.append(int(done.stdout.split()[-1]))
        grown = (peaks[1] - peaks[0]) / (MANY - FEW)
        print(f"| `{kind}` | {grown / 1000:.0f} | {grown / (4 * WIDTH):.1f} |", flush=True)


if __name__ == "__main__":
    guard(main)
