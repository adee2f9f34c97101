"""The record of a run in git, reports/runs/<run>/: small files that people review and compare reads.

    metrics.json            the figures of all test images, flat: accuracy, accuracy_low, accuracy_high, accuracy_sd, …
    details.json            the same figures of each class and each slice
    cost.json               operations, seconds, bytes and memory, flat
    outcomes.parquet        what was predicted for each test image, from which every figure can be worked out again
    confusion.csv           truth, predicted, images
    roc.csv, precision_recall.csv, reliability.csv     points of the curves

None of them holds a pixel. Undefined figures are null. Of many test images, or classes, outcomes.parquet holds what the
figures would be without one of 256 buckets of images (or groups) each: as much as a comparison needs. Which labels look
wrong is then in details.json.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.files import REPORTS, new_file, new_files, read_json, read_table, write_json, write_table
from stages.scoring.intervals import BUCKETS, Estimate, Replicates, as_number, left_out
from stages.scoring.metrics import LABEL_FIGURES, Outcomes
from stages.scoring.suspects import Suspect, Suspects

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

RUNS = REPORTS / "runs"
MOST_ROWS, MOST_NUMBERS = 50_000, 5_000_000
PLOTS = ("confusion", "roc", "precision_recall", "reliability")


@dataclass(frozen=True)
class Record:
    """What is known of a run.

    facts : classes, family, kind, dataset, features, fingerprint; of data set and features their content hash;
        multi_label : true where images may have several labels, else absent
    metrics : FIGURES or LABEL_FIGURES, each with _low, _high and _sd, None where undefined; repeats, images, groups
    details : {"classes": [{"class", "images", figures}], "slices": [{"column", "value", "images", figures}],
        "not_sliced": [{"column", "values": how many have no slice of their own}],
        "labels": {budget: {"labels", figures}}, few to many, empty where the run has one budget,
        "order": {"near", "tested", "by"}, see samples/order.py, where features are vectors,
        "suspects": see scoring/suspects.py, where outcomes are not rows}
    cost : numbers, None where unknown
    outcomes : the rows, or for many test images the figures with buckets left out; intervals.differences takes both
    """

    run: str
    facts: dict[str, Any]
    metrics: dict[str, Any]
    details: dict[str, Any]
    cost: dict[str, Any]
    outcomes: Outcomes | Replicates

    @property
    def headline(self) -> str:
        """The figure that runs are ordered and compared by."""
        return "average_precision" if self.facts.get("multi_label") else "accuracy"


def write_record(record: Record, plots: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write reports/runs/<run>/; plots gives for each name of PLOTS the rows of its CSV file."""
    with new_files(RUNS / record.run) as folder:
        write_json(folder / "metrics.json", record.metrics)
        write_json(folder / "details.json", _keyed(record.details))
        write_json(folder / "cost.json", record.cost)
        write_outcomes(folder / "outcomes.parquet", record.outcomes, record.facts)
        for name in PLOTS:
            write_csv(folder / f"{name}.csv", plots[name])


def read_record(run: str) -> Record:
    """Read reports/runs/<run>/; raises UserError when the run was not evaluated."""
    folder = RUNS / run
    outcomes, facts = read_outcomes(folder / "outcomes.parquet")
    return Record(
        run=run,
        facts=facts,
        metrics=read_json(folder / "metrics.json"),
        details=_listed(read_json(folder / "details.json")),
        cost=read_json(folder / "cost.json"),
        outcomes=outcomes,
    )


def _keyed(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return details by name of class, and by column and value: DVC would draw lists in a plots file as curves."""
    slices: dict[str, dict[str, Any]] = {}
    for entry in details["slices"]:
        figures = {k: v for k, v in entry.items() if k not in ("column", "value")}
        slices.setdefault(entry["column"], {})[entry["value"]] = figures
    return {
        "classes": {e["class"]: {k: v for k, v in e.items() if k != "class"} for e in details["classes"]},
        "slices": slices,
        "not_sliced": {e["column"]: {"values": e["values"]} for e in details["not_sliced"]},
        "labels": details["labels"],
        **({"order": details["order"]} if "order" in details else {}),
        **({"suspects": _suspects_keyed(details["suspects"])} if "suspects" in details else {}),
    }


def _suspects_keyed(suspects: Suspects) -> dict[str, Any]:
    likeliest: dict[str, dict[str, Any]] = {}
    for s in suspects.likeliest:
        figures = {"label": s.label, "p_label": as_number(s.p_label), "p_suggested": as_number(s.p_suggested)}
        likeliest.setdefault(s.sample, {})[s.suggested] = figures
    return {"images": suspects.images, "labels": suspects.labels, "likeliest": likeliest}


def _listed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `_keyed` was given."""
    return {
        "classes": [{"class": name, **figures} for name, figures in content["classes"].items()],
        "slices": [
            {"column": column, "value": value, **figures}
            for column, values in content["slices"].items()
            for value, figures in values.items()
        ],
        "not_sliced": [{"column": column, **entry} for column, entry in content["not_sliced"].items()],
        "labels": dict(content["labels"]),
        **({"order": content["order"]} if "order" in content else {}),
        **({"suspects": _suspects_listed(content["suspects"])} if "suspects" in content else {}),
    }


def _suspects_listed(content: Mapping[str, Any]) -> Suspects:
    likeliest = [
        Suspect(sample, figures["label"], suggested, figures["p_label"], figures["p_suggested"])
        for sample, suggestions in content["likeliest"].items()
        for suggested, figures in suggestions.items()
    ]
    likeliest.sort(key=lambda s: (round(s.p_label - s.p_suggested, 6), s.sample, s.suggested))
    return Suspects(content["images"], content["labels"], likeliest)


def read_plot(run: str, name: str) -> list[dict[str, str]]:
    """Read the rows of a run's CSV file, one of PLOTS."""
    with (RUNS / run / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Return figures as accuracy, accuracy_low, accuracy_high, accuracy_sd, and so on."""
    values: dict[str, float | None] = {}
    for name, e in estimates.items():
        values |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high, f"{name}_sd": e.sd}
    return values


def too_many(outcomes: Outcomes) -> bool:
    """Say whether these are more rows, or numbers, than a record holds."""
    return len(outcomes) > MOST_ROWS or outcomes.probabilities.size > MOST_NUMBERS


def write_outcomes(path: Path, outcomes: Outcomes | Replicates, facts: Mapping[str, Any]) -> None:
    """Write outcomes.parquet; more than MOST_ROWS rows, or MOST_NUMBERS, become figures with buckets left out."""
    if isinstance(outcomes, Outcomes) and too_many(outcomes):
        outcomes = left_out(outcomes)
    table = outcomes_table(outcomes) if isinstance(outcomes, Outcomes) else _left_out_table(outcomes)
    write_table(path, table.replace_schema_metadata({b"run": json.dumps(facts, ensure_ascii=False).encode()}))


def read_outcomes(path: Path) -> tuple[Outcomes | Replicates, dict[str, Any]]:
    """Read outcomes.parquet; returns the outcomes and the facts of the run."""
    table = read_table(path)
    facts: dict[str, Any] = json.loads(table.schema.metadata[b"run"])
    if "bucket" in table.column_names:
        return _read_left_out(table), facts
    groups = table["group"].to_pylist()
    classes = facts["classes"]
    return Outcomes(
        classes=classes,
        samples=table["sample"].to_pylist(),
        repeats=table["repeat"].to_numpy().astype(np.int64),
        groups=None if None in groups else groups,
        truth=_numbers(table["truth"], classes),
        probabilities=np.stack([table[f"p_{c}"].to_numpy().astype(np.float64) for c in classes], axis=1),
    ), facts


def _numbers(truth: pa.ChunkedArray, classes: Sequence[str]) -> NDArray[np.int64]:
    """Return what `outcomes_table` was given as truth."""
    number = {name: i for i, name in enumerate(classes)}
    values = truth.to_pylist()
    if values and isinstance(values[0], list):
        found = np.zeros((len(values), len(classes)), np.int64)
        for row, names in enumerate(values):
            found[row, [number[name] for name in names]] = 1
        return found
    return np.array([number[name] for name in values], np.int64)


def outcomes_table(outcomes: Outcomes) -> pa.Table:
    """Return sample, repeat, group, truth and p_<class> of each row; probabilities as float32.

    truth : the class, or where images may have several labels a list of those that it has
    """
    import pyarrow as pa

    classes = outcomes.classes
    truth: Any = (
        [classes[t] for t in outcomes.truth]
        if not outcomes.multi_label
        else [[classes[c] for c in np.flatnonzero(row)] for row in outcomes.truth]
    )
    columns = {
        "sample": pa.array(outcomes.samples, pa.string()),
        "repeat": pa.array(outcomes.repeats, pa.int32()),
        "group": pa.nulls(len(outcomes), pa.string()) if outcomes.groups is None else pa.array(outcomes.groups),
        "truth": pa.array(truth, pa.list_(pa.string()) if outcomes.multi_label else pa.string()),
    }
    for i, name in enumerate(outcomes.classes):
        columns[f"p_{name}"] = pa.array(outcomes.probabilities[:, i], pa.float32())
    return pa.table(columns)


def _left_out_table(found: Replicates) -> pa.Table:
    """Return repeat, bucket (null: nothing left out), images (of the repeat), share (of them kept) and the figures."""
    import pyarrow as pa

    rows = len(found.repeats) * (BUCKETS + 1)
    columns: dict[str, Any] = {
        "repeat": pa.array(np.repeat(found.repeats, BUCKETS + 1), pa.int32()),
        "bucket": pa.array([None, *range(BUCKETS)] * len(found.repeats), pa.int32()),
        "images": pa.array(np.repeat(found.images, BUCKETS + 1), pa.int64()),
        "share": np.concatenate([np.ones((len(found.repeats), 1)), found.share], axis=1).reshape(rows),
    }
    for figure in (name for name in LABEL_FIGURES if name in found.whole):
        values = np.concatenate([found.whole[figure][:, None], found.values[figure]], axis=1).reshape(rows)
        columns[figure] = pa.array(values, from_pandas=True)  # NaN becomes null
    return pa.table(columns)


def _read_left_out(table: pa.Table) -> Replicates:
    figures = [name for name in LABEL_FIGURES if name in table.column_names]
    columns = {
        name: table[name].to_numpy().reshape(-1, BUCKETS + 1) for name in ("repeat", "images", "share", *figures)
    }
    share = columns["share"][:, 1:]
    return Replicates(
        repeats=[int(r) for r in columns["repeat"][:, 0]],
        images=[int(n) for n in columns["images"][:, 0]],
        whole={figure: columns[figure][:, 0] for figure in figures},
        values={figure: columns[figure][:, 1:] for figure in figures},
        share=share,
        units=int((share < 1).any(axis=0).sum()),
        bootstrap=False,
    )


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV."""
    rows = list(rows)
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
