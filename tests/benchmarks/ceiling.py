"""How far averaging takes the runs of a study: what all of them together know, as Markdown.

    python -m tests.benchmarks.ceiling docs/options

Of the runs with all labels on the images and repeats of the reference run: the most accurate alone, and the mean of the
logits of all, with the threshold of one half and with the one that would have been best on these very test images.
Where many trainings of different networks, sizes and recipes together do no better than one, what is left lies in
images and labels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.cli import UserError, guard
from stages.params import read_params
from stages.scoring.intervals import estimates
from stages.scoring.metrics import Outcomes
from stages.scoring.records import read_outcomes
from tests.benchmarks.extract import table

SMALLEST = 1e-6
FIGURES = ("accuracy", "auc", "log_loss")


def keys(outcomes: Outcomes) -> list[tuple[str, int]]:
    """Return sample and repeat of each row."""
    return list(zip(outcomes.samples, outcomes.repeats.tolist(), strict=True))


def logits(outcomes: Outcomes, order: list[tuple[str, int]]) -> np.ndarray:
    """Return the logits of the second of two classes, in a given order of rows."""
    place = {key: row for row, key in enumerate(keys(outcomes))}
    p = outcomes.probabilities[[place[key] for key in order], 1].clip(SMALLEST, 1 - SMALLEST)
    return np.log(p / (1 - p))


def averaged(runs: list[Outcomes]) -> Outcomes:
    """Return what the mean of the runs' logits says, with the rows of the first."""
    mean = np.mean([logits(run, keys(runs[0])) for run in runs], axis=0)
    p = 1 / (1 + np.exp(-mean))
    return replace(runs[0], probabilities=np.stack([1 - p, p], axis=1))


def shown(name: str, outcomes: Outcomes) -> tuple[str, ...]:
    """Return a row of the table."""
    found = estimates(outcomes)[0]
    p, truth = outcomes.probabilities[:, 1], outcomes.truth
    hindsight = max(float(((p >= t) == truth).mean()) for t in np.linspace(0.2, 0.8, 121))
    return (name, *(f"{found[figure].value:.3f}" for figure in FIGURES), f"{hindsight:.3f}")


def main() -> None:
    """Print the table for each data set of the study."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m tests.benchmarks.ceiling STUDY")
    study = Path(sys.argv[1]).absolute()
    params = read_params(study / "params.yaml")
    for dataset, reference in params.compare.references.items():
        names = [n for n, run in params.runs.items() if run.dataset == dataset and run.budgets[-1] is None]
        kept = {n: study / "runs" / n / "outcomes.parquet" for n in names}
        read = {n: read_outcomes(path)[0] for n, path in kept.items() if path.is_file()}
        found = {n: o for n, o in read.items() if isinstance(o, Outcomes)}
        same = {n: o for n, o in found.items() if set(keys(o)) == set(keys(found[reference]))}
        best = max(same, key=lambda n: estimates(same[n])[0]["accuracy"].value or 0.0)
        rows = [shown(f"`{best}`, the most accurate of {len(same)}", same[best])]
        rows.append(shown(f"the mean of all {len(same)}", averaged(list(same.values()))))
        print(f"{dataset}, {len(found[reference]):,} test images\n")
        table(("", "accuracy", "AUC", "log loss", "accuracy at the best threshold in hindsight"), *rows)


if __name__ == "__main__":
    guard(main)
