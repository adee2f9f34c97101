"""How accuracy grows with the number of labels: reports/labels.csv, and the chart of it in the report."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from stages.params import Params
from stages.scoring.records import Record

FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_sd", "auc", "auc_low", "auc_high", "log_loss", "ece")
COLUMNS = ("run", "dataset", "features", "family", "kind", "repeats", "labels_per_class", "labels", *FIGURES)


def few_to_many(record: Record) -> list[tuple[str, dict[str, Any]]]:
    """Return the budgets of a run with their figures, from few labels to many."""
    return sorted(record.details["labels"].items(), key=lambda item: item[1]["labels"])


def label_rows(params: Params, records: Mapping[str, Record]) -> Iterator[dict[str, Any]]:
    """Yield a row for each budget of each run that has several, from few labels to many."""
    for name, record in records.items():
        run = params.runs[name]
        for budget, found in few_to_many(record):
            yield {
                "run": name,
                "dataset": run.dataset,
                "features": run.features,
                "family": record.facts["family"],
                "kind": record.facts["kind"],
                "repeats": record.metrics["repeats"],
                "labels_per_class": budget,
                "labels": found["labels"],
                **{figure: found[figure] for figure in FIGURES},
            }


def labels_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV, the header alone where there are none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
