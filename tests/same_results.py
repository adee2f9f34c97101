"""Compare the figures that `dvc repro` has just written with those that git holds.

    python -m tests.same_results

On one machine the bytes repeat. Another processor, engine or number of threads adds otherwise, so there a figure may
differ by TOLERANCE: some images of the 2,624 that lie on a classifier's border fall on its other side. A network that
is trained for many steps forgets nothing of such a difference: there it may be as large as between seeds, NETWORKS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stages.params import kind_module, read_params

TOLERANCE = {"accuracy": 0.01, "balanced_accuracy": 0.01, "f1": 0.015, "auc": 0.005, "log_loss": 0.02, "ece": 0.02}

NETWORKS = {"accuracy": 0.06, "balanced_accuracy": 0.08, "f1": 0.08, "auc": 0.05, "log_loss": 0.12, "ece": 0.1}


def differences() -> tuple[int, list[str]]:
    """Return how many figures were compared, and a line for each that differs by more than the tolerance."""
    names = subprocess.run(
        ["git", "ls-files", "reports/runs/*/metrics.json"], text=True, capture_output=True, check=True
    ).stdout.split()
    runs, lines, count = read_params().runs, list[str](), 0
    for name in names:
        run = runs.get(Path(name).parent.name)
        if run is None:  # of an earlier params.yaml
            continue
        committed = json.loads(
            subprocess.run(["git", "show", f"HEAD:{name}"], text=True, capture_output=True, check=True).stdout
        )
        computed = json.loads(Path(name).read_text())
        trained = getattr(kind_module("transfers", run.transfer.kind), "STREAMS", False)
        for figure, tolerance in (NETWORKS if trained else TOLERANCE).items():
            count += 1
            before, now = committed[figure], computed[figure]
            if before is not now and abs(before - now) > tolerance:
                lines.append(f"{name}: {figure} was {before:.4f} and is {now:.4f}, more than {tolerance:g} apart")
    return count, lines


if __name__ == "__main__":
    compared, wrong = differences()
    print("\n".join(wrong) or f"{compared} figures are what git holds")
    sys.exit(1 if wrong or not compared else 0)
