"""What the page says of each run: its figures, curves, what it takes for what, its classes, slices and mistakes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stages.files import EVALUATIONS
from stages.params import Entry, Params
from stages.scoring.charts import Line, curve
from stages.scoring.comparison import Comparison
from stages.scoring.inline_pictures import Picture, Pictures
from stages.scoring.leaderboard import Row
from stages.scoring.records import Record, read_plot
from stages.scoring.wording import column_name, count, decimals, interval, listed, seconds

MOST_CLASSES = 12
"""Classes shown in curves and in the confusion matrix: the hardest ones where there are more."""
ANSWERS = ("with, found", "with, missed", "without, named", "without, not named")
MOST_ROWS = 12
"""Classes, and values of a column, in a table: the hardest ones where there are more."""


def run_details(
    row: Row, params: Params, records: Mapping[str, Record], comparison: Comparison, pictures: Pictures
) -> dict[str, Any]:
    """Return what the template needs of one run."""
    name = str(row["run"])
    record, d = records[name], comparison.datasets[params.runs[name].dataset]
    special = {d.shown: "recommended" if d.recommended else "highest on one split"}
    special.setdefault(str(d.reference), "reference")
    headline = next(iter(comparison.datasets.values()))
    return {
        "run": name,
        "title": f"{name}: {row['kind']} on {row['features']}",
        "summary": ", ".join(
            filter(None, [f"{column_name(d.figure)} {decimals(row[d.figure])}", d.name, special.get(name)])
        ),
        "open": name == headline.shown,
        "facts": list(_run_facts(row, record)),
        "charts": list(_charts(name, record)),
        "confusion": (_answers if record.facts.get("multi_label") else _confusion)(name, record),
        "tables": list(_tables(name, record)),
        "not_sliced": _not_sliced(record),
        "mistakes": _mistakes(name, pictures) if name in special else None,
        "params": _params_text(name, params),
    }


TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "macro F1",
    "micro_f1": "micro F1",
    "log_loss": "log loss (nats)",
    "ece": "calibration error (ECE)",
}


def _run_facts(row: Row, record: Record) -> Iterator[tuple[str, str, str]]:
    """Yield names of facts, the facts, and what stands small below them."""
    for figure, title in ((f, t) for f, t in TITLES.items() if f in record.metrics):
        limits = interval(record.metrics.get(f"{figure}_low"), record.metrics.get(f"{figure}_high"))
        yield title, decimals(record.metrics[figure]), limits
    yield f"spread of {column_name(record.headline)}", decimals(row[f"{record.headline}_sd"]), "over splits"
    yield "trained parameters", count(row["trained_parameters"]), f"in {seconds(row['train_seconds'])}"
    yield "fingerprint", str(record.facts["fingerprint"])[:12], str(row["family"])


def _mistakes(run: str, pictures: Pictures) -> Picture | None:
    return pictures.add(
        EVALUATIONS / run / "pictures" / "mistakes.png",
        alt=f"Contact sheet of test images that {run} got wrong, the most confident first",
        caption="The most confident mistakes: the probability of the predicted class, and what it is.",
    )


def _shown_classes(record: Record) -> list[str]:
    """Return the classes to show: all, or where there are many those with the lowest recall, in their usual order."""
    classes: list[str] = record.facts["classes"]
    recall = {entry["class"]: entry.get("recall") for entry in record.details["classes"]}
    hardest = sorted(classes, key=lambda c: (1.0 if recall.get(c) is None else recall[c], c))[:MOST_CLASSES]
    return [c for c in classes if c in hardest]


def _charts(run: str, record: Record) -> Iterator[dict[str, Any]]:
    classes: list[str] = record.facts["classes"]
    two = len(classes) == 2 and not record.facts.get("multi_label")
    shown = classes[-1:] if two else _shown_classes(record)
    which = f"of {shown[0]}" if two else "of each class against the rest"
    thin = "thin: each split" if two else "mean over the splits"
    yield {
        "title": f"ROC {which}; {thin}",
        "svg": curve(
            _lines(run, "roc", ("fpr", "tpr"), shown, two),
            "false positive rate",
            "true positive rate",
            f"ROC curves of {run}",
            diagonal=True,
        ),
    }
    yield {
        "title": f"Precision and recall; {thin}",
        "svg": curve(
            _lines(run, "precision_recall", ("recall", "precision"), shown, two),
            "recall",
            "precision",
            f"Precision against recall of {run}",
        ),
    }
    yield {
        "title": "Reliability: on the diagonal, confidence is what comes true",
        "svg": curve(_reliability(run), "confidence", "accuracy", f"Reliability diagram of {run}", diagonal=True),
    }


def _lines(run: str, plot: str, axes: tuple[str, str], classes: Sequence[str], each_repeat: bool) -> list[Line]:
    """Return the mean curve of each class over its repeats, which share their steps, and each repeat's if asked."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in read_plot(run, plot):
        if row["class"] in classes:
            path = curves.setdefault(row["class"], {}).setdefault(row["repeat"], [])
            path.append((float(row[axes[0]]), float(row[axes[1]])))
    lines = []
    for repeats in curves.values():
        paths = list(repeats.values())
        mean = [(points[0][0], sum(y for _, y in points) / len(paths)) for points in zip(*paths, strict=True)]
        lines += [Line(path) for path in paths if each_repeat and len(paths) > 1]
        lines.append(Line(mean, strong=each_repeat))
    return lines


def _reliability(run: str) -> list[Line]:
    points = [(float(row["confidence"]), float(row["accuracy"])) for row in read_plot(run, "reliability")]
    return [Line(points, strong=True, dots=True)] if points else []


def _confusion(run: str, record: Record) -> dict[str, Any]:
    classes, shown = record.facts["classes"], _shown_classes(record)
    counted = {(row["truth"], row["predicted"]): int(row["images"]) for row in read_plot(run, "confusion")}
    rows = []
    for truth in shown:
        total = max(sum(counted.get((truth, c), 0) for c in classes), 1)
        images = {c: counted.get((truth, c), 0) for c in shown}
        cells = [{"text": f"{n:,}", "share": f"{n / total:.3f}", "right": c == truth} for c, n in images.items()]
        rows.append({"name": truth, "cells": cells})
    note = "a row for each true class, a column for what it was taken for"
    return {"classes": list(shown), "rows": rows, "left_out": len(classes) - len(shown), "note": note}


def _answers(run: str, record: Record) -> dict[str, Any]:
    """Return for each label how many images that have it, and how many that have not, were said to have it."""
    classes, shown = record.facts["classes"], _shown_classes(record)
    counted = {(row["truth"], row["predicted"]): int(row["images"]) for row in read_plot(run, "confusion")}
    rows = []
    for name in shown:
        cells = []
        for truth in (name, f"not {name}"):
            images = {predicted: counted.get((truth, predicted), 0) for predicted in (name, f"not {name}")}
            total = max(sum(images.values()), 1)
            cells += [{"text": f"{n:,}", "share": f"{n / total:.3f}", "right": p == truth} for p, n in images.items()]
        rows.append({"name": name, "cells": cells})
    note = "a row for each label, and of the images with it, and those without, how many were said to have it"
    return {"classes": list(ANSWERS), "rows": rows, "left_out": len(classes) - len(shown), "note": note}


def _tables(run: str, record: Record) -> Iterator[dict[str, Any]]:
    """Yield a table for the classes and for each column that the test images are sliced by."""
    figures = {"precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC"}
    figures |= {"average_precision": "average precision"} if record.facts.get("multi_label") else {}
    shown, few = _hardest(record.details["classes"], "recall")
    yield {
        "id": f"classes-{run}",
        "title": f"Each class{few}",
        "columns": ["class", "images", *figures.values()],
        "rows": [[c["class"], count(c["images"]), *(_with_interval(c, figure) for figure in figures)] for c in shown],
    }
    slices: dict[str, list[dict[str, Any]]] = {}
    for entry in record.details["slices"]:
        slices.setdefault(entry["column"], []).append(entry)
    for i, (column, entries) in enumerate(slices.items()):
        shown, few = _hardest(entries, record.headline)
        yield {
            "id": f"slices-{run}-{i}",
            "title": f"By {column}{few}",
            "columns": [column, "images", column_name(record.headline), "AUC"],
            "rows": [
                [s["value"], count(s["images"]), *(_with_interval(s, f) for f in (record.headline, "auc"))]
                for s in shown
            ],
        }


def _hardest(entries: Sequence[dict[str, Any]], figure: str) -> tuple[Sequence[dict[str, Any]], str]:
    """Return all entries; where they are many, those with the lowest figure, and how to say so."""
    if len(entries) <= MOST_ROWS:
        return entries, ""
    ordered = sorted(entries, key=lambda e: 2.0 if e[figure] is None else e[figure])
    return ordered[:MOST_ROWS], f", the {MOST_ROWS} hardest of {len(entries):,}"


def _not_sliced(record: Record) -> str:
    left = [f"{entry['values']:,} of {entry['column']}" for entry in record.details["not_sliced"]]
    return f"Values with too few images to look at each: {listed(left)}." if left else ""


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    limits = interval(figures.get(f"{name}_low"), figures.get(f"{name}_high"), lambda x: decimals(x, 2))
    return f"{decimals(figures.get(name))} {f'({limits})' if limits else ''}".strip()


def _params_text(run: str, params: Params) -> str:
    """Return what params.yaml says of a run, its features and its data set, as YAML."""
    from ruamel.yaml import YAML

    entry = params.runs[run]
    levels: dict[str, dict[str, Entry]] = {
        "datasets": {entry.dataset: params.datasets[entry.dataset]},
        "features": {entry.features: params.features[entry.features]},
        "runs": {run: entry},
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 10_000
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    lines = []
    for level, entries in levels.items():
        for name, value in entries.items():
            buffer = io.StringIO()
            yaml.dump(value.model_dump(exclude_unset=True), buffer)
            lines += [f"{level}:", f"  {name}: {buffer.getvalue().strip()}"]
    return "\n".join(lines)
