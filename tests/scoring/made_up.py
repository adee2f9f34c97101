"""Made-up runs with a known truth, written as evaluate writes them, for the tests of compare and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.params import Compare, Dataset, Features, Params, Run, Split, Transfer
from stages.scoring.intervals import estimates
from stages.scoring.metrics import Outcomes
from stages.scoring.plots import plot_rows
from stages.scoring.records import Record, flat, write_record

SPLIT = Split(test=0.25, validation=0.15, repeats=4)
COST = {
    "extract_seconds": 21.4,
    "train_seconds": 3.2,
    "extract_core_seconds": 40.1,
    "train_core_seconds": 4.0,
    "images_per_second": 122.6,
    "extract_peak_memory_bytes": 910_000_000,
    "train_peak_memory_bytes": 410_000_000,
    "trained_parameters": 1281,
    "operations_per_image": 690_000_000,
    "extract_operations": 1_800_000_000_000,
    "train_operations": 0,
    "end_to_end_epochs": 0.6,
    "feature_bytes": 13_400_000,
}


class AnyTransfer(Transfer, extra="allow"):
    """A method with whatever keys."""


def make_params(
    runs: Mapping[str, tuple[str, str, str]],
    datasets: Mapping[str, Dataset] | None = None,
    features: Mapping[str, Features] | None = None,
    references: Mapping[str, str] | None = None,
) -> Params:
    """Return params with runs given as data set, features and kind; features not described are pooled ones."""
    of_runs = {
        name: Run(dataset=dataset, features=of, transfer=AnyTransfer(kind=kind))
        for name, (dataset, of, kind) in runs.items()
    }
    pooled = {r.features: Features(images="photos", backbone="raw/net", image_size=64) for r in of_runs.values()}
    plain = {r.dataset: Dataset(images="photos", split=SPLIT) for r in of_runs.values()}
    return Params(
        downloads={},
        datasets={**plain, **(datasets or {})},
        features={**pooled, **(features or {})},
        runs=of_runs,
        compare=Compare(references=dict(references or {})),
    )


def make_outcomes(
    right: Sequence[bool] | np.ndarray,
    groups: Sequence[str] | None = None,
    repeats: int = 4,
    classes: Sequence[str] = ("sound", "defective"),
    truth: Sequence[int] | None = None,
    seed: int = 0,
) -> Outcomes:
    """Return outcomes of images taken for the right class or not, image i tested in repeat i modulo repeats."""
    right = np.asarray(right, dtype=bool)
    count, k = len(right), len(classes)
    random = np.random.default_rng(seed)
    classes_of = np.arange(count) // repeats % k if truth is None else np.asarray(truth)
    predicted = np.where(right, classes_of, (classes_of + 1) % k)
    confidence = random.uniform(0.55, 0.95, count)
    probabilities = np.repeat(((1 - confidence) / (k - 1))[:, None], k, axis=1)
    probabilities[np.arange(count), predicted] = confidence
    order = np.argsort(np.arange(count) % repeats, kind="stable")
    samples = [f"image-{i:05d}.png" for i in range(count)]
    return Outcomes(
        classes=list(classes),
        samples=[samples[i] for i in order],
        repeats=(np.arange(count) % repeats)[order].astype(np.int64),
        groups=None if groups is None else [groups[i] for i in order],
        truth=classes_of[order].astype(np.int64),
        probabilities=probabilities[order],
    )


def make_record(
    run: str,
    outcomes: Outcomes,
    family: str = "feature",
    slices: Sequence[Mapping[str, Any]] = (),
    **cost: float | None,
) -> Record:
    """Return the record of a run, its figures worked out from its outcomes."""
    figures, of_classes = estimates(outcomes)
    images, groups = len(set(outcomes.samples)), outcomes.groups and len(set(outcomes.groups))
    details = [
        {"class": name, "images": int((outcomes.truth == i).sum()), **flat(of_classes[name])}
        for i, name in enumerate(outcomes.classes)
    ]
    return Record(
        run=run,
        facts={
            "classes": outcomes.classes,
            "family": family,
            "kind": "logistic",
            "dataset": "0" * 64,
            "fingerprint": f"{run:a<64}",
        },
        metrics={**flat(figures), "repeats": len(outcomes.repeat_numbers), "images": images, "groups": groups},
        details={"classes": details, "slices": list(slices), "not_sliced": [], "labels": {}},
        cost={**COST, **cost},
        outcomes=outcomes,
    )


def write_made_up(record: Record) -> None:
    """Write a record and its curves."""
    assert isinstance(record.outcomes, Outcomes)
    write_record(record, plot_rows(record.outcomes))
