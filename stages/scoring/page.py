"""The report: one HTML page that holds all it shows, for a desk, a phone, paper and a screen reader.

What the page says is put together here as plain values; page.html says where it stands, page.css and charts.css how
it looks. Every value passes the template's escaping, since names of classes and slices come from other people's files.
The page's own content security policy forbids every script but its own and every request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.files import DATA
from stages.params import Params
from stages.scoring.charts import Bars, Growth, Point, growth, scatter, style
from stages.scoring.comparison import (
    BETTER,
    ONE_SPLIT,
    TOO_FEW,
    WORSE,
    Comparison,
    DatasetComparison,
    SplitComparison,
    verdict,
)
from stages.scoring.data_section import data_section, read_if_there, split_text
from stages.scoring.inline_pictures import Pictures
from stages.scoring.intervals import RESAMPLES, Difference
from stages.scoring.labels import few_to_many
from stages.scoring.leaderboard import Row, headline
from stages.scoring.records import Record
from stages.scoring.run_details import run_details
from stages.scoring.suspects import Suspects
from stages.scoring.wording import (
    FIGURE_NAMES,
    column_name,
    count,
    decimals,
    interval,
    listed,
    p_value,
    seconds,
    signed,
    size,
    unbroken,
)

SECTIONS = {
    "recommendation": "Recommendation",
    "leaderboard": "Leaderboard",
    "differences": "Differences",
    "cost": "Cost",
    "split": "What the split is worth",
    "runs": "Each run",
    "data": "Data",
    "sure": "How sure is this",
    "reproduce": "Reproduce",
}
BAR_WIDTHS = (230, 132)
"""Of the bars on a desk and on a phone, in pixels."""


def page(
    params: Params,
    records: Mapping[str, Record],
    comparison: Comparison,
    rows: Sequence[Row],
    suspects: Mapping[str, Suspects],
) -> str:
    """Return the whole page as HTML."""
    from jinja2 import Environment, StrictUndefined

    folder = Path(__file__).parent
    js = (folder / "page.js").read_text(encoding="utf-8")
    css = style() + (folder / "page.css").read_text(encoding="utf-8")
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string((folder / "page.html").read_text(encoding="utf-8"))
    pictures = Pictures()
    context = {
        "policy": _policy(css, js),
        "css": Markup(css),
        "js": Markup(js),
        "lead": _lead(comparison),
        "sections": [(k, v) for k, v in SECTIONS.items() if k != "split" or comparison.splits],
        "datasets": [_dataset(d, params, records, rows) for d in comparison.datasets.values()],
        "figures": _all_figures(rows),
        "splits": [_split(s, params, records) for s in comparison.splits],
        "runs": [run_details(row, params, records, comparison, pictures) for row in rows],
        "data": [data_section(d, params, records, suspects[d.name], pictures) for d in comparison.datasets.values()],
        "weights": list(_weights(params)),
        "resamples": f"{RESAMPLES:,}",
        "grouped": [d.name for d in comparison.datasets.values() if d.groups],
        "example": next(iter(comparison.datasets.values())).shown,
    }
    return template.render(context)


def _policy(css: str, js: str) -> str:
    """Allow the page's own style and script by their hashes, pictures inside it, and nothing else."""
    style, script = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (css, js))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; style-src-attr 'unsafe-inline'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )


def _lead(comparison: Comparison) -> str:
    names = list(comparison.datasets)
    runs = sum(len(d.runs) for d in comparison.datasets.values())
    return (
        f"{runs} {'run' if runs == 1 else 'runs'} on {listed(names)}, compared on the same test images: "
        "how good, how sure, and at what cost."
    )


# One data set: what is recommended, leaderboard, differences, cost


def _dataset(
    d: DatasetComparison, params: Params, records: Mapping[str, Record], rows: Sequence[Row]
) -> dict[str, Any]:
    rows = [row for row in rows if row["dataset"] == d.name]
    chosen = next(row for row in rows if row["run"] == d.shown)
    values = [v for row in rows for v in _limits(row, d.figure)]
    wide, narrow = (Bars.over(values, width, at_most=1.0) for width in BAR_WIDTHS)
    reference = records[d.reference].metrics[d.figure] if d.reference else None
    return {
        "name": d.name,
        "figure": column_name(d.figure),
        "split_by": split_text(d, params),
        "recommendation": unbroken(d.recommendation),
        "cautions": d.cautions,
        "chosen_title": "recommended" if d.recommended else "highest on one split",
        "chosen": {**_figures(chosen), "run": d.shown, "cost": count(chosen["operations_per_image"])},
        "caption": _caption(d),
        "axis": {"wide": wide.axis(), "narrow": narrow.axis()},
        "rows": [
            {
                **_figures(row),
                "run": row["run"],
                "what": f"{row['kind']} on {row['features']}" + _labelled(row, params) + _on_fewer(row, d),
                "family": row["family"],
                "chosen": row["run"] == d.recommended,
                "spread": decimals(row[f"{d.figure}_sd"]),
                "bar": wide.bar(*_limits(row, d.figure), mark=reference),
                "narrow_bar": narrow.bar(*_limits(row, d.figure), mark=reference),
                "cost": count(row["operations_per_image"]),
                "costs": _costs(row),
            }
            for row in rows
        ],
        **_differences(d),
        **_cost_charts(d, params, rows),
        **_labels_chart(d, rows, records),
    }


def _limits(row: Row, figure: str) -> tuple[float, float, float]:
    """Return low, value and high; where there is no interval all are the value."""
    value = float(row[figure])
    low, high = (value if row[f"{figure}_{end}"] is None else float(row[f"{figure}_{end}"]) for end in ("low", "high"))
    return low, value, high


def _figures(row: Row) -> dict[str, str]:
    figure = headline(row)
    return {
        "score": decimals(row[figure]),
        "interval": interval(row[f"{figure}_low"], row[f"{figure}_high"]),
        "auc": decimals(row["auc"]),
        "auc_interval": interval(row["auc_low"], row["auc_high"]),
    }


def _caption(d: DatasetComparison) -> str:
    groups = f" in {d.groups:,} groups" if d.groups else ""
    splits = "one split" if d.repeats == 1 else f"{d.repeats} splits"
    mark = f" The dashed line is {d.reference}, the reference." if d.reference else ""
    return f"{d.images:,} test images{groups}, {splits}. Best first.{mark}"


def _on_fewer(row: Row, d: DatasetComparison) -> str:
    return "" if row["repeats"] == d.repeats else f", {row['repeats']} of {d.repeats} splits"


def _labelled(row: Row, params: Params) -> str:
    most = params.runs[str(row["run"])].budgets[-1]
    return "" if most is None else f", {most} labels of each class"


def _costs(row: Row) -> list[str]:
    return [
        count(row["operations_per_image"]),
        decimals(row["end_to_end_epochs"], 1),
        f"{seconds(row['extract_seconds'])}, {seconds(row['extract_core_seconds'])}",
        count(row["images_per_second"]),
        f"{seconds(row['train_seconds'])}, {seconds(row['train_core_seconds'])}",
        count(row["trained_parameters"]),
        f"{size(row['extract_peak_memory_bytes'])}, {size(row['train_peak_memory_bytes'])}",
        size(row["feature_bytes"]),
    ]


def _differences(d: DatasetComparison) -> dict[str, Any]:
    found = d.to_reference
    if not found:
        missing = "There is no plain linear probe to compare with: name a run under compare.references in params.yaml."
        only = f"{d.reference} is the only run: there is nothing to compare it with."
        return {"differences": [], "no_differences": only if d.reference else missing}
    values = [0.0, *(v for x in found.values() for v in (x.low, x.value, x.high) if v is not None)]
    wide, narrow = (Bars.over(values, width) for width in BAR_WIDTHS)
    ordered = sorted(found, key=lambda run: (-(found[run].value or 0.0), run))
    comparisons = "one comparison" if len(found) == 1 else f"{len(found)} comparisons"
    return {
        "differences": [
            {
                **_difference(found[run], d),
                "run": run,
                "chosen": run == d.recommended,
                "bar": _bar(found[run], wide),
                "narrow_bar": _bar(found[run], narrow),
            }
            for run in ordered
        ],
        "difference_axis": {"wide": wide.axis(signed=True), "narrow": narrow.axis(signed=True)},
        "difference_caption": f"{_title(d)} minus that of {d.reference}, {comparisons}. "
        "The dashed line is no difference.",
        "no_differences": "",
    }


def _bar(x: Difference, bars: Bars) -> Markup:
    value = x.value or 0.0
    return bars.bar(value if x.low is None else x.low, value, value if x.high is None else x.high, mark=0.0)


VERDICT_SIGNS = {BETTER: ("better", "▲ better"), WORSE: ("worse", "▼ worse")}


def _difference(x: Difference, d: DatasetComparison) -> dict[str, str]:
    what = verdict(x)
    kind, text = VERDICT_SIGNS.get(what, ("even", what))
    withheld = what in (ONE_SPLIT, TOO_FEW)
    return {
        "difference": signed(x.value),
        "interval": interval(x.low, x.high, signed),
        "p": "–" if withheld else p_value(x.p_adjusted),
        "verdict": text,
        "verdict_class": kind,
        "note": "" if len(x.repeats) == d.repeats else f"on {len(x.repeats)} of {d.repeats} splits",
    }


def _cost_charts(d: DatasetComparison, params: Params, rows: Sequence[Row]) -> dict[str, Any]:
    signs = ["dots are transfers"]
    signs += ["squares are baselines, which transfer nothing"] if any(row["family"] == "none" for row in rows) else []
    signs += ["the ring is the recommended run"] if d.recommended else []
    drawn = {
        "scatter_caption": f"{_title(d)} with its 95 % interval: {', '.join(signs)}.",
        **_cost_chart("scatter", "multiply-adds per image", _points(d, rows, _predicting), d),
        "training": "",
    }
    if any(row["train_operations"] for row in rows):  # heads alone: all the work is in extraction
        curves = above_cuts(d.runs, params)
        axis = "multiply-adds of extraction and training, one repeat"
        drawn |= _cost_chart("training", axis, _points(d, rows, _getting_there), d, curves)
        drawn["training_caption"] = "A line joins runs that differ only in the cut." if curves else ""
    return drawn


def _cost_chart(
    key: str, axis: str, points: list[Point], d: DatasetComparison, joined: Sequence[Sequence[str]] = ()
) -> dict[str, Any]:
    name = f"{_title(d)} against {axis} for the runs on {d.name}; the numbers are in the tables"
    return {key: scatter(points, name, axis, joined), f"{key}_narrow": scatter(points, name, axis, joined, width=330)}


def _title(d: DatasetComparison) -> str:
    return FIGURE_NAMES[d.figure].capitalize()


def _predicting(row: Row) -> float:
    return float(row["operations_per_image"] or 0)


def _getting_there(row: Row) -> float:
    return float(row["extract_operations"] or 0) + float(row["train_operations"] or 0)


def above_cuts(runs: Sequence[str], params: Params) -> list[list[str]]:
    """Return the runs of one data set that differ in nothing but the cut above which they train, recipe by recipe."""
    recipes: dict[str, dict[str, str]] = {}
    for name in runs:
        run = params.runs[name]
        features = params.features[run.features]
        shown = features.model_dump_json(exclude={"cut", "dtype", "logits"})
        recipe = run.model_dump_json(exclude={"features", "labels_per_class", "repeats", "final"}) + shown
        recipes.setdefault(recipe, {})[features.cut] = name
    return [list(by_cut.values()) for by_cut in recipes.values() if len(by_cut) > 1]


def _points(d: DatasetComparison, rows: Sequence[Row], cost: Callable[[Row], float]) -> list[Point]:
    return [
        Point(
            label=str(row["run"]),
            cost=cost(row),
            low=_limits(row, d.figure)[0],
            value=float(row[d.figure]),
            high=_limits(row, d.figure)[2],
            shape="best" if row["run"] == d.recommended else "baseline" if row["family"] == "none" else "dot",
            url=f"#run-{row['run']}",
        )
        for row in rows
    ]


def _labels_chart(d: DatasetComparison, rows: Sequence[Row], records: Mapping[str, Record]) -> dict[str, Any]:
    lines = []
    for row in rows:
        budgets = few_to_many(records[str(row["run"])])
        if budgets:
            points = [(found["labels"], *_limits(found, "accuracy")) for _, found in budgets]
            shape = "best" if row["run"] == d.recommended else "baseline" if row["family"] == "none" else "dot"
            lines.append(Growth(str(row["run"]), points, shape))
    name = f"Accuracy over the number of labels for the runs on {d.name}; the numbers are in reports/labels.csv"
    return {
        "growth": growth(lines, name) if lines else "",
        "growth_narrow": growth(lines, name, width=330) if lines else "",
    }


FIGURE_COLUMNS: dict[str, tuple[str, Any]] = {
    "run": ("run", None),
    "dataset": ("data set", None),
    "features": ("features", None),
    "family": ("family", None),
    "kind": ("kind", None),
    "repeats": ("repeats", count),
    "labels_per_class": ("labels of each class", None),
    "accuracy": ("accuracy", decimals),
    "accuracy_low": ("low", decimals),
    "accuracy_high": ("high", decimals),
    "accuracy_sd": ("spread over splits", decimals),
    "balanced_accuracy": ("balanced accuracy", decimals),
    "auc": ("AUC", decimals),
    "auc_low": ("AUC low", decimals),
    "auc_high": ("AUC high", decimals),
    "average_precision": ("average precision", decimals),
    "average_precision_low": ("average precision low", decimals),
    "average_precision_high": ("average precision high", decimals),
    "f1": ("F1", decimals),
    "micro_f1": ("micro F1", decimals),
    "log_loss": ("log loss", decimals),
    "ece": ("ECE", decimals),
    "difference": ("difference", signed),
    "p_adjusted": ("corrected p", p_value),
    "verdict": ("verdict", None),
}


def _all_figures(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "columns": [{"title": title, "number": shown is not None} for title, shown in FIGURE_COLUMNS.values()],
        "rows": [
            [
                {
                    "text": row[name] or "–" if shown is None else shown(row[name]),
                    "value": "" if row[name] is None else row[name],
                    "number": shown is not None,
                }
                for name, (_, shown) in FIGURE_COLUMNS.items()
            ]
            for row in rows
        ],
    }


def _split(split: SplitComparison, params: Params, records: Mapping[str, Record]) -> dict[str, Any]:
    titles = []
    for name in split.datasets:
        group = params.datasets[name].group
        titles.append({"name": name, "how": f"{group}s kept whole" if group else "images split one by one"})
    rows = [
        {
            "runs": pair.runs,
            "cells": [_figures(records[run].metrics) for run in pair.runs],
            "difference": signed(pair.difference),
            "interval": interval(pair.low, pair.high, signed),
        }
        for pair in split.pairs
    ]
    return {"label": listed(list(split.datasets)), "titles": titles, "rows": rows, "meaning": unbroken(split.meaning)}


def _weights(params: Params) -> Iterator[dict[str, str]]:
    """Yield what is known of the weights that the runs' features were computed with."""
    for name in dict.fromkeys(run.features for run in params.runs.values()):
        features = params.features[name]
        network = read_if_there(DATA / features.backbone / "network.json")
        yield {
            "features": name,
            "network": network.get("network", features.backbone),
            "origin": network.get("source") or network.get("origin") or "–",
            "licence": network.get("licence") or "–",
        }
