"""How long heads on frozen features take for many rows, and how much memory, as Markdown for docs/own-images.md.

    python -m tests.benchmarks.heads        a quarter of an hour

Rows of 1,280 numbers in float16, half of them zero, as Lite0 gives pooled; ten classes, one setting of each kind.
Memory is what a process takes for itself: pages of files that the system reads ahead, and gives up where others need
the room, are not in it. A kernel is left out: up to 20,000 rows it compares each with each, and takes no more.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import numpy as np

from stages.cli import guard
from stages.params import kind_module
from stages.store.activations import RowWriter, read_features, write_checksums
from stages.store.models import read_model, write_model
from stages.transfers import Part, TrainingData

COUNTS = (100_000, 400_000)
CLASSES, WIDTH, PREDICTED = 10, 1280, 10_000
KINDS: dict[str, dict[str, Any]] = {
    "logistic": {"C": [0.001]},
    "lda": {"shrinkage": ["auto"]},
    "lda_probe": {"shrinkage": ["auto"], "C": [0.1]},
    "ridge": {"alpha": [100.0]},
    "nearest_mean": {},
    "mlp": {"hidden": [256], "epochs": 2},
    "linear_svm": {"C": [0.001]},
    "knn": {"k": [5]},
}


def write_rows(folder: Path, count: int) -> None:
    """Write so many rows as extract does."""
    import pyarrow as pa

    from stages.files import write_json, write_table

    folder.mkdir()
    random = np.random.default_rng(0)
    means = random.standard_normal((CLASSES, WIDTH), np.float32) / 8
    mixed = random.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH**0.5  # features hang together
    with RowWriter(folder, "activations", count, (1, WIDTH), "float16") as writer:
        for first in range(0, count, 10_000):
            noise = random.standard_normal((10_000, WIDTH), np.float32) @ mixed
            writer.append(np.maximum(means[np.arange(first, first + 10_000) % CLASSES] + noise, 0)[:, np.newaxis])
    write_table(folder / "index.parquet", pa.table({"image_hash": [f"{row:064x}" for row in range(count)]}))
    write_json(
        folder / "features.json", {"views": ["identity"], "shape": [WIDTH], "rows_per_file": writer.rows_per_file}
    )
    write_checksums(folder)


def fit(kind: str, folder: Path) -> None:
    """Fit a head, a fifth of the rows for validation, and print what it took: what a process of its own does."""
    store, module = read_features(folder), kind_module("transfers", kind)
    rows = np.random.default_rng(0).permutation(len(store))
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            peak = max(peak, 1024 * int(status.partition("RssAnon:")[2].split()[0]))

    def part(own: Any) -> Part:
        stored = cast("Any", store.stored(own)) if getattr(module, "PIECES", False) else store.read(own)
        return Part(stored, own % CLASSES, None, None)

    threading.Thread(target=watch, daemon=True).start()
    began = time.perf_counter()
    data = TrainingData([str(n) for n in range(CLASSES)], part(rows[len(rows) // 5 :]), part(rows[: len(rows) // 5]))
    model = module.fit(module.Params(kind=kind, **KINDS[kind]), data, 0)
    write_model(folder / kind, model)
    seconds = time.perf_counter() - began
    model, began = read_model(folder / kind), time.perf_counter()
    for some in np.array_split(rows[:PREDICTED], 10):
        model.predict_proba(store.read(some))
    predicting = time.perf_counter() - began
    done.set()
    print(json.dumps([seconds, predicting, peak]))


def measured(kind: str, folder: Path) -> str:
    """Return three cells of the table."""
    command = [sys.executable, "-m", "tests.benchmarks.heads", kind, str(folder)]
    seconds, predicting, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return f"{seconds:.0f} s | {predicting:.1f} s | {peak / 2**20:,.0f} MiB"


def main() -> None:
    """Print a row for each kind; with arguments, fit one."""
    if sys.argv[1:]:
        fit(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as there:
        folders = {count: Path(there) / str(count) for count in COUNTS}
        for count, folder in folders.items():
            write_rows(folder, count)
        print("| kind |" + "".join(f" {count:,} rows | {PREDICTED:,} predicted | memory |" for count in COUNTS))
        print("|---|" + "---|---|---|" * len(COUNTS))
        for kind in KINDS:
            print(f"| `{kind}` | {' | '.join(measured(kind, folder) for folder in folders.values())} |", flush=True)


if __name__ == "__main__":
    guard(main)
