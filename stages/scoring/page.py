"""The report: one HTML page that holds all it shows, for a desk, a phone, paper and a screen reader.

What the page says is put together here as plain values; page.html says where it stands, page.css and charts.css how
it looks. Every value passes the template's escaping, since names of classes and slices come from other people's files.
The page's own content security policy forbids every script but its own and every request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.files import DATA, PREPARED, RAW, read_json, read_table
from stages.params import Dataset, Label, Params
from stages.samples.order import Order
from stages.samples.pictures import contact_sheet
from stages.samples.thumbnails import SIDE, read_thumbnails
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
from stages.scoring.inline_pictures import Pictures
from stages.scoring.intervals import RESAMPLES, Difference
from stages.scoring.labels import few_to_many
from stages.scoring.leaderboard import Row, headline
from stages.scoring.records import Record
from stages.scoring.run_details import run_details
from stages.scoring.suspects import Suspect, judges
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
MOST_SHEETS = 12
"""Classes whose contact sheets are shown."""
MOST_SUSPECTS = 24
"""Images whose labels look wrong that are shown."""
MOST_SLICES = 6
"""Values of a column whose images are counted: the most frequent ones where there are more."""


def page(
    params: Params,
    records: Mapping[str, Record],
    comparison: Comparison,
    rows: Sequence[Row],
    suspects: Mapping[str, Sequence[Suspect] | None],
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
        "data": [_data(d, params, records, suspects[d.name], pictures) for d in comparison.datasets.values()],
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
        "split_by": _split_text(d, params),
        "recommendation": _unbroken(d.recommendation),
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


def _unbroken(text: str) -> str:
    """Keep a number and its per cent sign on one line."""
    return text.replace(" %", "\u00a0%")


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


def _split_text(d: DatasetComparison, params: Params) -> str:
    dataset = params.datasets[d.name]
    how = f"split by {dataset.group}" if dataset.group else "images split one by one"
    if dataset.split.column:
        how = f"split as the column {dataset.split.column} says"
    return f"{how}, {'once' if d.repeats == 1 else f'{d.repeats} times'}"


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
    return {"label": listed(list(split.datasets)), "titles": titles, "rows": rows, "meaning": _unbroken(split.meaning)}


# Data and pictures


def _data(
    d: DatasetComparison,
    params: Params,
    records: Mapping[str, Record],
    suspects: Sequence[Suspect] | None,
    pictures: Pictures,
) -> dict[str, Any]:
    dataset = params.datasets[d.name]
    facts = _read_if_there(PREPARED / d.name / "dataset.json")
    tested = {c["class"]: c["images"] for c in records[d.runs[0]].details["classes"]}
    counts: dict[str, int] = facts.get("counts", tested)
    folder, files = PREPARED / d.name, facts.get("pictures", {})
    sheets = [
        pictures.add(folder / file, alt=f"Contact sheet of images of class {name}", caption=f"Class {name}.")
        for name, file in list(files.items())[:MOST_SHEETS]
    ]
    there = any((folder / file).is_file() for file in files.values())
    return {
        "name": d.name,
        "facts": [(k, v) for k, v in _data_facts(d, dataset.images, facts, params) if v],
        "leakage": _leakage(facts, dataset),
        "counted": "images" if "counts" in facts else "test images of all repeats",
        **_class_table(counts, facts["samples"] if facts.get("multi_label") else sum(counts.values()), facts),
        "pictures": [p for p in sheets if p is not None],
        "contradictions": _contradictions(d.name, facts, pictures),
        "suspects": _suspects(d, records, facts, suspects, pictures),
        "slices": list(_slice_rows(records[d.best], dataset.label)),
        "note": "" if there else "Pictures of the classes are not on the machine that made this page.",
    }


def _class_table(counts: Mapping[str, int], total: int, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row for each class: how many images, in which part, how bright; what is not known here is left out."""
    described = facts.get("described", {})
    parts, brightness = described.get("parts", {}), described.get("brightness", {})
    columns = [*(f"{part} in the first split" for part in next(iter(parts.values()), {}))]
    columns += ["brightness, of 255"] if brightness else []
    rows = []
    for name, n in counts.items():
        cells = [f"{count:,}" for count in parts.get(name, {}).values()]
        if name in brightness:
            low, middle, high = brightness[name]
            cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
        share = f"{n / max(total, 1):.0%}".replace("%", "\u00a0%")
        rows.append({"name": name, "cells": [f"{n:,}", share, *cells]})
    return {"class_columns": columns, "classes": rows}


def _slice_rows(record: Record, label: Label) -> Iterator[tuple[str, str]]:
    """Yield each column that results are sliced by, and how many test images have which of its values.

    What the table of classes says already is left out.
    """
    left = {entry["column"]: entry["values"] for entry in record.details["not_sliced"]}
    columns: dict[str, dict[str, int]] = {}
    for entry in record.details["slices"]:
        columns.setdefault(entry["column"], {})[entry["value"]] = entry["images"]
    for column, images in columns.items():
        if set(images) == set(record.facts["classes"]) or (label.multi_label and column in label.columns):
            continue
        frequent = sorted(images, key=lambda value: -images[value])[:MOST_SLICES]
        shown = [f"{value}: {n:,}" for value, n in images.items() if value in frequent]
        more = len(images) - len(shown) + left.get(column, 0)
        yield column, "; ".join([*shown, *([f"{more:,} more values"] if more else [])])


def _contradictions(name: str, facts: Mapping[str, Any], pictures: Pictures) -> dict[str, Any] | None:
    """Return how many pairs of images look the same and are labelled otherwise, and the first of them side by side."""
    if not facts.get("contradictions"):
        return None
    folder = PREPARED / name
    rows = read_table(folder / "contradictions.parquet").slice(0, MOST_SUSPECTS // 2).to_pylist()
    shown = [(row[name], row[label]) for row in rows for name, label in (("sample", "label"), ("other", "other_label"))]
    images = read_thumbnails(folder / "thumbnails.parquet", [sample for sample, _ in shown])
    sheet = _sheet(images, [f"{label}\n{sample}" for sample, label in shown])
    return {
        "text": f"{facts['contradictions']:,} pairs of images look the same and are labelled otherwise.",
        "picture": pictures.add_bytes(
            sheet, f"Contact sheet of pairs of {name} that look the same", "Pairs, with their labels and names."
        ),
    }


def _sheet(images: Sequence[Any], captions: Sequence[str]) -> bytes:
    """Return a contact sheet as PNG."""
    sheet = io.BytesIO()
    contact_sheet(images, captions, columns=6, side=SIDE).save(sheet, "PNG")
    return sheet.getvalue()


def _suspects(
    d: DatasetComparison,
    records: Mapping[str, Record],
    facts: Mapping[str, Any],
    suspects: Sequence[Suspect] | None,
    pictures: Pictures,
) -> dict[str, Any]:
    """Return what is said of labels that look wrong, and a contact sheet of the likeliest where the images are here."""
    if suspects is None:
        return {"text": "There are too many test images to tell which labels look wrong.", "picture": None}
    asked, found = judges(d, records), len({suspect.sample for suspect in suspects})
    judged = records[d.best].metrics["images"]
    text = (
        f"{found:,} of {judged:,} test images look as if they were of another class than they are labelled, "
        f"to {listed(asked)}, on images that {'it has' if len(asked) == 1 else 'they have'} not seen."
    )
    shown, here = suspects[:MOST_SUSPECTS], facts.get("content_hash") == records[d.runs[0]].facts["dataset"]
    if not shown or not here:
        return {"text": text, "picture": None}
    images = read_thumbnails(PREPARED / d.name / "thumbnails.parquet", [suspect.sample for suspect in shown])
    sheet = _sheet(images, [suspect.caption for suspect in shown])
    alt = f"Contact sheet of images of {d.name} whose labels look wrong"
    caption = f"The likeliest {len(shown)}: the probability and name of the class that it looks like, and its label."
    return {"text": text, "picture": pictures.add_bytes(sheet, alt, caption)}


def _data_facts(d: DatasetComparison, images: str, facts: Mapping[str, Any], params: Params) -> list[tuple[str, Any]]:
    download = _read_if_there(RAW / images / "download.json")
    group = params.datasets[d.name].group
    return [
        ("images", images),
        ("origin", download.get("origin")),
        ("licence", download.get("licence")),
        ("division", _split_text(d, params)),
        ("groups", f"{d.groups:,}, by {group}" if d.groups else None),
        ("sizes", _sizes(facts.get("described", {}))),
        ("left out", _left_out(facts)),
        ("exact duplicates", f"{facts['duplicates']:,}, kept on one side" if facts.get("duplicates") else None),
        ("near duplicates", _near_duplicates(facts, params.datasets[d.name])),
    ]


def _sizes(described: Mapping[str, Any]) -> str | None:
    if not described:
        return None
    modes = {"L": "grey", "RGB": "colour"}
    sizes = [f"{n:,} of {of}" for of, n in described["sizes"].items()]
    sizes += [f"{described['other_sizes']:,} of other sizes"] if described["other_sizes"] else []
    return f"{listed(sizes)}; {listed([f'{n:,} {modes.get(m, m)}' for m, n in described['modes'].items()])}"


def _left_out(facts: Mapping[str, Any]) -> str | None:
    if not facts.get("rejected"):
        return None
    reasons = [f"{n:,}: {reason}" for reason, n in facts.get("described", {}).get("reasons", {}).items()]
    return "; ".join([f"{facts['rejected']:,}, listed in rejected.parquet", *reasons])


def _near_duplicates(facts: Mapping[str, Any], dataset: Dataset) -> str | None:
    """Say how many images look nearly the same as another, and whether they are kept on one side of every split."""
    if not facts.get("near_duplicates"):
        return None
    text = f"{facts['near_duplicates']:,} images look like another"
    if dataset.near_duplicates and dataset.split.column is None:
        return f"{text}, kept on one side"
    apart = facts.get("leakage", {}).get("near_duplicates")
    return text if apart is None else f"{text}, {apart:,} of them like one in another part{_of_the_first(dataset)}"


def _of_the_first(dataset: Dataset) -> str:
    return " of the first split" if dataset.split.repeats > 1 else ""


def _leakage(facts: Mapping[str, Any], dataset: Dataset) -> str | None:
    """Say what leaks into the test part, by pixels, by looks and by the order of names (see samples/order.py)."""
    found = []
    if "leakage" in facts:
        copies, alike = facts["leakage"]["same_pixels"], facts["leakage"]["test_images"]
        left_out = f"{copies:,} images, left out because a later part holds them"
        tested = f"{alike:,} test images look like one in another part{_of_the_first(dataset)}"
        found += [f"by pixels: {left_out if copies else 'none'}", f"by looks: {tested if alike else 'none'}"]
    order = Order(**facts["order"]) if "order" in facts else Order(0.0, 0)
    if order.tested:
        of = _unbroken(f"for {order.share * 100:.0f} % of {order.tested:,} test images, where 50 % is chance")
        near = f"the training image that looks most like a test image stands near it {of}"
        what = f"{dataset.group} does not keep it together" if dataset.group else "name what it shares as group"
        found.append(f"by order: likely, {near}; {what}" if order.tells else f"by order: none seen, {near}")
    return "; ".join(found) or None


def _weights(params: Params) -> Iterator[dict[str, str]]:
    """Yield what is known of the weights that the runs' features were computed with."""
    for name in dict.fromkeys(run.features for run in params.runs.values()):
        features = params.features[name]
        network = _read_if_there(DATA / features.backbone / "network.json")
        yield {
            "features": name,
            "network": network.get("network", features.backbone),
            "origin": network.get("source") or network.get("origin") or "–",
            "licence": network.get("licence") or "–",
        }


def _read_if_there(path: Path) -> dict[str, Any]:
    """Read a file that a clone without the data lacks: the page is made all the same."""
    return dict(read_json(path)) if path.is_file() else {}
