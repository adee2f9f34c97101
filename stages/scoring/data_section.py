"""The report's section Data: what a data set is like, what leaks, and which of its labels look wrong.

All is read from what prepare has written beside the samples; a clone without the data lacks some of it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.files import PREPARED, RAW, read_json, read_table
from stages.params import Dataset, Label, Params
from stages.samples.order import Order
from stages.samples.pictures import contact_sheet
from stages.samples.thumbnails import SIDE, read_thumbnails
from stages.scoring.comparison import DatasetComparison
from stages.scoring.inline_pictures import Pictures
from stages.scoring.judges import judges
from stages.scoring.records import Record
from stages.scoring.suspects import Suspects
from stages.scoring.wording import listed, unbroken

MOST_SHEETS = 12
"""Classes whose contact sheets are shown."""
MOST_SUSPECTS = 24
"""Images whose labels look wrong that are shown."""
MOST_SLICES = 6
"""Values of a column whose images are counted: the most frequent ones where there are more."""


def data_section(
    d: DatasetComparison,
    params: Params,
    records: Mapping[str, Record],
    suspects: Suspects,
    pictures: Pictures,
) -> dict[str, Any]:
    """Return what the page says of a data set."""
    dataset = params.datasets[d.name]
    facts = read_if_there(PREPARED / d.name / "dataset.json")
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
        "leakage": _leakage(
            facts,
            dataset,
            {
                params.runs[name].features: Order(**records[name].details["order"])
                for name in d.runs
                if "order" in records[name].details
            },
        ),
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
    suspects: Suspects,
    pictures: Pictures,
) -> dict[str, Any]:
    """Return what is said of labels that look wrong, and a contact sheet of the likeliest where the images are here."""
    asked, judged = judges(d, records), records[d.best].metrics["images"]
    text = (
        f"{suspects.images:,} of {judged:,} test images look as if they were of another class than they are labelled, "
        f"to {listed(asked)}, on images that {'it has' if len(asked) == 1 else 'they have'} not seen."
    )
    there = len(suspects.likeliest)
    said = {"text": text, "listed": "All are" if there == suspects.labels else f"The likeliest {there:,} are"}
    shown, here = suspects.likeliest[:MOST_SUSPECTS], facts.get("content_hash") == records[d.runs[0]].facts["dataset"]
    if not shown or not here:
        return {**said, "picture": None}
    images = read_thumbnails(PREPARED / d.name / "thumbnails.parquet", [suspect.sample for suspect in shown])
    sheet = _sheet(images, [suspect.caption for suspect in shown])
    alt = f"Contact sheet of images of {d.name} whose labels look wrong"
    caption = f"The likeliest {len(shown)}: the probability and name of the class that it looks like, and its label."
    return {**said, "picture": pictures.add_bytes(sheet, alt, caption)}


def _data_facts(d: DatasetComparison, images: str, facts: Mapping[str, Any], params: Params) -> list[tuple[str, Any]]:
    download = read_if_there(RAW / images / "download.json")
    group = params.datasets[d.name].group
    return [
        ("images", images),
        ("origin", download.get("origin")),
        ("licence", download.get("licence")),
        ("division", split_text(d, params)),
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


def _leakage(facts: Mapping[str, Any], dataset: Dataset, in_features: Mapping[str, Order]) -> str | None:
    """Say what leaks into the test part, by pixels, by looks and by the order of names (see samples/order.py).

    in_features : what the features of runs say of the order, by their names
    """
    found = []
    if "leakage" in facts:
        copies, alike = facts["leakage"]["same_pixels"], facts["leakage"]["test_images"]
        left_out = f"{copies:,} images, left out because a later part holds them"
        tested = f"{alike:,} test images look like one in another part{_of_the_first(dataset)}"
        found += [f"by pixels: {left_out if copies else 'none'}", f"by looks: {tested if alike else 'none'}"]
    orders = [("order", "that looks most like", Order(**facts["order"]))] if "order" in facts else []
    if in_features:
        features = max(in_features, key=lambda name: (in_features[name].tells, in_features[name].share))
        orders.append((f"order in the features {features}", "nearest to", in_features[features]))
    for by, most_like, order in orders:
        if order.tested:
            of = unbroken(f"for {order.share * 100:.0f} % of {order.tested:,} test images, where 50 % is chance")
            near = f"the training image {most_like} a test image stands near it {of}"
            by = by if order.by == "names" else by.replace("order", "order of the table", 1)
            found.append(f"by {by}: {'likely' if order.tells else 'none seen'}, {near}")
    if any(order.tells for _, _, order in orders):
        found.append(f"{dataset.group} does not keep it together" if dataset.group else "name what it shares as group")
    return "; ".join(found) or None


def split_text(d: DatasetComparison, params: Params) -> str:
    """Say how a data set is split, and how often."""
    dataset = params.datasets[d.name]
    how = f"split by {dataset.group}" if dataset.group else "images split one by one"
    if dataset.split.column:
        how = f"split as the column {dataset.split.column} says"
    return f"{how}, {'once' if d.repeats == 1 else f'{d.repeats} times'}"


def read_if_there(path: Path) -> dict[str, Any]:
    """Read a file that a clone without the data lacks: the page is made all the same."""
    return dict(read_json(path)) if path.is_file() else {}
