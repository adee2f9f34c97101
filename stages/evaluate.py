"""Score a run on the test images: the only stage that looks at them.

    data/prepared/<dataset>/, data/features/<features>/, data/models/<run>/, data/costs/
        ->  data/evaluations/<run>/ (predictions, pictures), reports/runs/<run>/ (figures, what they cost, curves)

Each repeat's model predicts that repeat's test images. Every figure is the mean over the repeats, with an interval for
the choice of test images (of groups, where there are groups) and the spread over the repeats.

    python -m stages.evaluate svm
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError, printable, run_stage, warn
from stages.files import COSTS, EVALUATIONS, MODELS, PREPARED, new_folder, read_json, write_table
from stages.memory import keep_freed_memory
from stages.params import Run
from stages.samples.labels import names
from stages.samples.order import Order, look_up
from stages.samples.pictures import contact_sheet, write_picture
from stages.samples.table import Samples, read_samples
from stages.samples.thumbnails import SIDE, read_thumbnails
from stages.scoring.intervals import Estimate, Replicates, estimates, left_out, replicates
from stages.scoring.metrics import Floats, Integers, Outcomes
from stages.scoring.plots import draw_pictures, most_confident_mistakes, plot_rows
from stages.scoring.records import Record, flat, outcomes_table, too_many, write_record
from stages.scoring.suspects import MOST_KEPT, find_suspects
from stages.scoring.wording import FIGURE_NAMES
from stages.store.activations import FeatureStore, read_features
from stages.store.models import Model, read_model
from stages.transfers.shared.shallow import unit_length

if TYPE_CHECKING:
    import pyarrow as pa

    from stages.transfers.shared.shallow import Singles

MOST_SLICES = 30
"""Values of a column up to which each is looked at alone; of more, ranges of numbers, and the most frequent words."""
FEWEST_IMAGES = 10
"""Test images that a word must have to be looked at alone where there are many."""
FACTS = ("classes", "family", "kind", "dataset", "features", "fingerprint", "multi_label")


def evaluate(name: str, entry: Run) -> None:
    """Write data/evaluations/<name>/ and reports/runs/<name>/."""
    keep_freed_memory()
    samples, features = read_samples(entry.dataset), read_features(entry.features)
    run = read_json(MODELS / name / "run.json")
    rows, outcomes = predict(name, samples, features, run["repeats"])
    found = replicates(outcomes)
    figures, of_classes = estimates(outcomes, found)
    plots = plot_rows(outcomes)
    with new_folder(EVALUATIONS / name) as folder:
        write_table(folder / "predictions.parquet", predictions_table(samples, rows, outcomes))
        draw_pictures(folder / "pictures", outcomes, plots)
        draw_mistakes(folder / "pictures" / "mistakes.png", entry.dataset, outcomes)
    details = describe(samples, rows, outcomes, of_classes)
    order = look_up_order(samples, features)
    if order is not None:
        details["order"] = order.facts
        told = samples.facts.get("order")
        if order.tells and not (told and Order(**told).tells):  # prepare has not said so
            warn(f"{entry.dataset}: {order.hint('is by its features', samples.facts['entry']['group'])}")
    details["labels"] = dict(curve(name, samples, features, run, figures))
    kept: Outcomes | Replicates = outcomes
    if too_many(outcomes):
        kept = left_out(outcomes) if found.bootstrap else found
        details["suspects"] = find_suspects([outcomes], MOST_KEPT)
    record = Record(
        run=name,
        facts={fact: run[fact] for fact in FACTS if fact in run},
        metrics={
            **flat(figures),
            "repeats": len(outcomes.repeat_numbers),
            "images": len(set(outcomes.samples)),
            "groups": None if outcomes.groups is None else len(set(outcomes.groups)),
        },
        details=details,
        cost=read_cost(name, entry, features),
        outcomes=kept,
    )
    write_record(record, plots)
    print(printable(summary(record, figures)))


def look_up_order(samples: Samples, features: FeatureStore) -> Order | None:
    """Look up how often the image most like a test image of the first repeat, by features, stands near it.

    None where what is stored are no vectors: of maps it would take long to read so many.
    """
    at = features.rows(samples.image_hashes)
    if len(features.shape) > 1 or (at < 0).any():
        return None

    def apart(row: int, others: Integers) -> Singles:
        vectors = unit_length(features.read(at[[row, *others]], features.views[:1])[:, 0])
        cosines = (vectors[1:] * vectors[0]).sum(axis=1)  # a matrix product's bits would vary
        found: Singles = np.where(np.isnan(cosines), np.float32(np.inf), -cosines)
        return found

    labels = samples.labels
    labels = labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1]
    part = np.ones(len(samples), np.int64)
    part[samples.part(0, "train")], part[samples.part(0, "test")] = 0, 2
    table_row = samples.table["table_row"].to_numpy() if "table_row" in samples.table.column_names else None
    return look_up(apart, labels.reshape(-1), part, table_row)


def curve(
    name: str, samples: Samples, features: FeatureStore, run: dict[str, Any], figures: dict[str, Estimate]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield for each budget of labels how many labels that were, and the figures; nothing where there is one alone."""
    *fewer, most = run["budgets"]
    for budget in fewer:
        _, outcomes = predict(name, samples, features, run["repeats"], f"labels-{budget}/")
        found, _ = estimates(outcomes)
        yield str(budget), {"labels": _labels(samples, run["repeats"], budget), **flat(found)}
    if fewer:
        yield str(most), {"labels": _labels(samples, run["repeats"], most), **flat(figures)}


def _labels(samples: Samples, repeats: int, budget: int | str) -> float:
    """Return how many labels a budget is, training and validation together: the mean over the repeats."""
    number = None if budget == "all" else int(budget)
    used = [samples.labelled(repeat, ("train",), number) for repeat in range(repeats)]
    return float(np.mean([len(training) + len(validation) for training, validation in used]))


def predict(
    name: str, samples: Samples, features: FeatureStore, repeats: int, where: str = ""
) -> tuple[Integers, Outcomes]:
    """Let the model of each repeat predict its test images; returns the row in `samples` of each prediction, too.

    where : the folder in data/models/<run>/ that the models are in.

    Probabilities are rounded to float32, as they are stored: figures can be worked out again from the files.
    """
    tested = [samples.part(repeat, "test") for repeat in range(repeats)]
    rows = np.concatenate(tested)
    probabilities = np.empty((len(rows), len(samples.classes)))
    ends = np.cumsum([len(part) for part in tested])
    for repeat, (part, end) in enumerate(zip(tested, ends, strict=True)):
        model = read_model(MODELS / name / f"{where}repeat-{repeat}")
        predict_test(model, samples, features, part, probabilities[end - len(part) : end])
    all_names, groups = samples.table["sample"].to_pylist(), samples.groups
    return rows, Outcomes(
        classes=samples.classes,
        samples=[all_names[row] for row in rows],
        repeats=np.repeat(np.arange(repeats), [len(part) for part in tested]),
        groups=None if groups is None else [groups[row] for row in rows],
        truth=samples.labels[rows],
        probabilities=probabilities,
    )


def predict_test(model: Model, samples: Samples, features: FeatureStore, part: Integers, out: Floats) -> None:
    """Write the probabilities (n, classes) that a model gives to some samples; raises as `check_finite` does."""
    hashes, names = samples.image_hashes, samples.table["sample"].take(part).to_pylist()
    rows = features.rows([hashes[row] for row in part])
    if (rows < 0).any():
        raise UserError(
            f"data/features/{features.facts['features']} has no row for {int((rows < 0).sum())} test images of "
            f"{samples.name}: run `dvc repro`"
        )
    start = 0
    for activations in features.checked(rows, names):
        out[start : start + len(activations)] = model.predict_proba(activations).astype(np.float32)
        start += len(activations)


def predictions_table(samples: Samples, rows: Integers, outcomes: Outcomes) -> pa.Table:
    """Return sample, image_hash, repeat, group, truth and p_<class> of each prediction."""
    return outcomes_table(outcomes).add_column(1, "image_hash", samples.table["image_hash"].take(rows))


def draw_mistakes(path: Path, dataset: str, outcomes: Outcomes) -> None:
    """Write the most confident mistakes as a contact sheet; a run that makes none has no such picture."""
    mistakes = most_confident_mistakes(outcomes)
    if mistakes:
        images = read_thumbnails(PREPARED / dataset / "thumbnails.parquet", [m.sample for m in mistakes])
        write_picture(path, contact_sheet(images, [m.caption for m in mistakes], columns=6, side=SIDE))


def describe(
    samples: Samples, rows: Integers, outcomes: Outcomes, of_classes: dict[str, dict[str, Estimate]]
) -> dict[str, Any]:
    """Return the figures of each class, and of the images with each value of the source's columns.

    A column that is the class, as that of a folder is, says nothing that the figures of each class do not.
    """
    images = [int(outcomes.positive(c).sum()) for c in range(len(outcomes.classes))]
    labels = None if outcomes.multi_label else [outcomes.classes[label] for label in outcomes.truth]
    slices, left = [], []
    for column in samples.facts["columns"]:
        values = samples.table[column].take(rows).to_pylist()
        if [str(value) for value in values] == labels:
            continue
        of_each, shown, values_left = into_slices(values)
        slices += [{"column": column, "value": name, **slice_figures(of_each, name, outcomes)} for name in shown]
        left += [{"column": column, "values": values_left}] * bool(values_left)
    return {
        "classes": [
            {"class": name, "images": n, **flat(of_classes[name])}
            for name, n in zip(outcomes.classes, images, strict=True)
        ],
        "slices": slices,
        "not_sliced": left,
    }


def into_slices(values: Sequence[Any]) -> tuple[list[str | None], list[str], int]:
    """Sort images into slices by a column's values: one for each value, or, of many numbers, one for each quarter.

    Returns the slice of each image (None: no value, or a rare word), the slices in order, and how many words have none.
    """
    counts = Counter(value for value in values if value is not None and value == value)
    present = sorted(counts)
    if len(present) > MOST_SLICES and all(isinstance(value, int | float) for value in present):
        edges = np.unique(np.quantile(list(counts.elements()), (0, 0.25, 0.5, 0.75, 1))).tolist()
        limits = names(edges)
        shown = [f"{low} to {high}" for low, high in pairwise(limits)]
        of_value = {value: shown[min(bisect_right(edges, value), len(shown)) - 1] for value in present}
    else:
        if len(present) > MOST_SLICES:
            frequent = [value for value, count in counts.most_common() if count >= FEWEST_IMAGES]
            present = sorted(frequent[:MOST_SLICES])
        shown = names(present)
        of_value = dict(zip(present, shown, strict=True))
    return [of_value.get(value) for value in values], shown, sum(value not in of_value for value in counts)


def slice_figures(of_each: Sequence[str | None], name: str, outcomes: Outcomes) -> dict[str, Any]:
    """Return the figures of the images of a slice."""
    mine = outcomes.select(np.array([own == name for own in of_each]))
    return {"images": len(set(mine.samples)), **flat(estimates(mine)[0])}


def read_cost(name: str, entry: Run, features: FeatureStore) -> dict[str, Any]:
    """Return what the run has cost: counts, and the seconds of the machine that really computed it."""
    extract = read_json(COSTS / "extract" / f"{entry.features}.json")
    train = read_json(COSTS / "finetune" / f"{name}.json")
    extracting = extract["operations"] * extract["images"]
    # An epoch end to end takes all training images there and back, each in one view.
    one_view = features.facts["operations"] / len(features.views) + train["pass_operations"]
    epoch = 3 * one_view * train["training_images"]
    return {
        "operations_per_image": features.facts["operations"] + train["operations"],
        "extract_operations": extracting,
        "train_operations": train["training_operations"],
        "end_to_end_epochs": (extracting + train["training_operations"]) / epoch if epoch else None,
        "trained_parameters": train["trained_parameters"],
        "feature_bytes": extract["bytes"],
        "extract_seconds": extract["seconds"],
        "extract_core_seconds": extract["core_seconds"],
        "images_per_second": extract["images_per_second"],
        "extract_peak_memory_bytes": extract["peak_memory_bytes"],
        "train_seconds": train["seconds"],
        "train_core_seconds": train["core_seconds"],
        "train_peak_memory_bytes": train["peak_memory_bytes"],
    }


def summary(record: Record, figures: dict[str, Estimate]) -> str:
    """Say in a line how good the run is, and of which columns some values are not looked at alone."""
    parts = []
    for key, title in ((record.headline, FIGURE_NAMES[record.headline]), ("auc", "AUC")):
        figure = figures[key]
        interval = "" if figure.low is None else f" ({figure.low:.3f} to {figure.high:.3f})"
        parts.append(f"{title} {'undefined' if figure.value is None else f'{figure.value:.3f}'}{interval}")
    skipped = [f"{entry['values']} values of {entry['column']}" for entry in record.details["not_sliced"]]
    note = f"; no slice of their own: {', '.join(skipped)}" if skipped else ""
    return f"{record.run}: {', '.join(parts)}{note}"


if __name__ == "__main__":
    run_stage(evaluate, level="runs")
