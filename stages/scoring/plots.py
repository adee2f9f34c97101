"""What people look at: the points of a run's curves, for DVC and the page, and the same as pictures.

A curve is brought to a grid of equal steps, so that the files stay small whatever the number of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.cli import printable
from stages.files import new_file
from stages.scoring.metrics import CALIBRATION_BINS, LEAST_PRESENT, Floats, Outcomes, calibration_bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
Curve = Callable[[NDArray[np.bool_], Floats, Floats], Floats]

STEPS = 100
MOST_POINTS = 10_000
"""Of all curves of a file; with many classes and repeats the steps become larger."""
MOST_NAMES = 20
"""Classes whose names and counts can be read on a picture."""
MOST_LINES = 10
MISTAKES = 24


def plot_rows(outcomes: Outcomes) -> dict[str, list[Row]]:
    """Return the rows of the CSV files of a record, by name."""
    return {
        "confusion": confusion_rows(outcomes),
        "roc": curve_rows(outcomes, ("fpr", "tpr"), _roc),
        "precision_recall": curve_rows(outcomes, ("recall", "precision"), _precision_recall),
        "reliability": reliability_rows(outcomes),
    }


def confusion_rows(outcomes: Outcomes) -> list[Row]:
    """Return truth, predicted and images of every pair of classes that occurs, and of the diagonal.

    An image that several repeats test counts in each. Of several labels each is told from those without it.
    """
    if outcomes.multi_label:
        return list(_answers(outcomes))
    counts = confusion_counts(outcomes)
    return [
        {"truth": truth, "predicted": predicted, "images": int(counts[i, j])}
        for i, truth in enumerate(outcomes.classes)
        for j, predicted in enumerate(outcomes.classes)
        if i == j or counts[i, j] > 0
    ]


def _answers(outcomes: Outcomes) -> Iterator[Row]:
    for c, name in enumerate(outcomes.classes):
        names = f"not {name}", name
        pairs = zip(
            outcomes.positive(c).tolist(), (outcomes.probabilities[:, c] >= LEAST_PRESENT).tolist(), strict=True
        )
        counts = Counter(pairs)
        for truth, predicted in product((True, False), repeat=2):
            yield {"truth": names[truth], "predicted": names[predicted], "images": counts[truth, predicted]}


def confusion_counts(outcomes: Outcomes) -> NDArray[np.int64]:
    """Return (classes, classes): how many images of the class of the row were taken for the class of the column."""
    k = len(outcomes.classes)
    pairs = outcomes.truth * k + outcomes.probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def curve_rows(outcomes: Outcomes, axes: tuple[str, str], curve: Curve) -> list[Row]:
    """Return class, repeat and the two axes for the curve of every class against the rest in every repeat.

    Of two classes the curve of the last one alone: of the other it is the same curve from the other side.
    A curve that is undefined (a repeat tests none of a class) is left out.
    """
    repeats, shown = outcomes.repeat_numbers, outcomes.ranked
    grid = np.linspace(0.0, 1.0, 1 + int(np.clip(MOST_POINTS // (len(shown) * len(repeats)), 10, STEPS)))
    rows: list[Row] = []
    for c in shown:
        for repeat in repeats:
            mine = outcomes.repeats == repeat
            positive, score = outcomes.positive(c)[mine], outcomes.probabilities[mine, c]
            if positive.all() or not positive.any():
                continue
            ends = {"class": outcomes.classes[c], "repeat": repeat}
            rows += [
                {**ends, axes[0]: round(float(x), 4), axes[1]: round(float(y), 4)}
                for x, y in zip(grid, curve(positive, score, grid), strict=True)
            ]
    return rows or [{"class": outcomes.classes[-1], "repeat": repeats[0], axes[0]: 0.0, axes[1]: 0.0}]


def _roc(positive: NDArray[np.bool_], score: Floats, grid: Floats) -> Floats:
    """Return the true positive rate at false positive rates; straight between thresholds, as chance would mix them."""
    found, false = _cumulative(positive, score)
    # Where several thresholds have one false positive rate, interp takes the last of them, the highest.
    rate: Floats = np.interp(grid, np.append(0.0, false / false[-1]), np.append(0.0, found / found[-1]))
    return rate


def _precision_recall(positive: NDArray[np.bool_], score: Floats, grid: Floats) -> Floats:
    """Return the precision of the first threshold that reaches a recall, as average precision counts it."""
    found, false = _cumulative(positive, score)
    reached = np.searchsorted(found, grid * found[-1] - 1e-9)
    precision: Floats = found[reached] / (found[reached] + false[reached])
    return precision


def _cumulative(positive: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
    """Return how many positives and negatives have at least each score that occurs, from the highest down."""
    order = np.argsort(-score)  # equal scores come in together below: their order does not matter
    ends = np.append(score[order][1:] != score[order][:-1], True)
    found = np.cumsum(positive[order])[ends].astype(np.float64)
    return found, np.flatnonzero(ends) + 1.0 - found


def reliability_rows(outcomes: Outcomes) -> list[Row]:
    """Return mean confidence, accuracy and images of each bin of the predicted class's probability that is not empty.

    Of several labels each answer counts, by the probability of what is answered.
    All repeats together; the ECE is worked out for each repeat alone.
    """
    right_ones, confidence = outcomes.right.ravel(), outcomes.confidence.ravel()
    bins = calibration_bin(confidence)
    images = np.bincount(bins, minlength=CALIBRATION_BINS)
    total = np.bincount(bins, confidence, CALIBRATION_BINS)
    right = np.bincount(bins, right_ones, CALIBRATION_BINS)
    return [
        {"confidence": round(total[b] / n, 6), "accuracy": round(right[b] / n, 6), "images": int(n)}
        for b, n in enumerate(images)
        if n
    ]


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for another class."""

    sample: str
    truth: str
    predicted: str
    probability: float  # of the predicted class

    @property
    def caption(self) -> str:
        """What is written below the picture."""
        return f"{self.probability:.2f} {self.predicted}\nis {self.truth}"


def most_confident_mistakes(outcomes: Outcomes, count: int = MISTAKES) -> list[Mistake]:
    """Return the wrong predictions of highest probability, each image once, the most confident first."""
    wrong, confidence = np.argwhere(~outcomes.right), outcomes.confidence[~outcomes.right]
    found: dict[str, Mistake] = {}
    for at in np.argsort(-confidence, kind="stable"):
        if len(found) == count:
            break
        sample, (truth, predicted) = outcomes.samples[wrong[at][0]], _names(outcomes, wrong[at])
        found.setdefault(sample, Mistake(sample, truth, predicted, float(confidence[at])))
    return list(found.values())


def _names(outcomes: Outcomes, where: NDArray[np.int64]) -> tuple[str, str]:
    """Return what is true and what is predicted: of an image, or of one label of an image."""
    if outcomes.multi_label:
        row, label = where
        name = outcomes.classes[label]
        return (name, f"not {name}") if outcomes.truth[row, label] else (f"not {name}", name)
    row = where[0]
    return outcomes.classes[outcomes.truth[row]], outcomes.classes[outcomes.probabilities[row].argmax()]


def draw_pictures(folder: Path, outcomes: Outcomes, rows: dict[str, list[Row]]) -> None:
    """Write confusion.png, roc.png, precision_recall.png and reliability.png."""
    classes = outcomes.classes
    side = 4.5 if len(classes) <= MOST_NAMES else 7.0
    if outcomes.multi_label:
        _draw(folder / "confusion.png", side, True, lambda axes: _draw_answers(axes, classes, rows["confusion"]))
    else:
        counts = confusion_counts(outcomes)
        _draw(folder / "confusion.png", side, True, lambda axes: _draw_confusion(axes, classes, counts))
    for name, keys in (("roc", ("fpr", "tpr")), ("precision_recall", ("recall", "precision"))):
        _draw(folder / f"{name}.png", 4.5, False, partial(_draw_curves, rows=rows[name], keys=keys, classes=classes))
    _draw(folder / "reliability.png", 4.5, False, lambda axes: _draw_reliability(axes, rows["reliability"]))


_AXIS_NAMES = {"fpr": "false positive rate", "tpr": "true positive rate", "recall": "recall", "precision": "precision"}


def _draw(path: Path, side: float, names: bool, draw: Callable[[Axes], None]) -> None:
    """Draw one picture and write it as PNG; equal figures give equal bytes, so no date and no version goes into it.

    names : whether room must be found for the names of classes beside the axes, which takes twice the time
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side), dpi=110, layout="tight" if names else None)
    FigureCanvasAgg(figure)
    draw(figure.add_subplot() if names else figure.add_axes((0.14, 0.12, 0.82, 0.78)))
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _draw_confusion(axes: Axes, classes: Sequence[str], counts: NDArray[np.int64]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set(xlabel="predicted", ylabel="truth", title="test images, shaded by share of the true class")
    axes.title.set_fontsize(9)
    if len(classes) > MOST_NAMES:
        return
    places = range(len(classes))
    axes.set_xticks(places, [_short(c) for c in classes], rotation=30, ha="right")
    axes.set_yticks(places, [_short(c) for c in classes])
    for i, j in ((i, j) for i in places for j in places if counts[i, j]):
        ink = "white" if shares[i, j] > 0.5 else "black"
        axes.text(j, i, f"{counts[i, j]:,}", ha="center", va="center", color=ink, fontsize=9 if len(classes) < 8 else 6)


def _draw_answers(axes: Axes, classes: Sequence[str], rows: Sequence[Row]) -> None:
    """Draw for each label how many images that have it, and how many that have not, are said to have it."""
    counts = np.array([row["images"] for row in rows]).reshape(len(classes), 4)
    totals = counts.reshape(-1, 2, 2).sum(axis=2, keepdims=True)
    shares = (counts.reshape(-1, 2, 2) / np.maximum(totals, 1)).reshape(-1, 4)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(4), ["with,\nfound", "with,\nmissed", "without,\nnamed", "without,\nnot named"], fontsize=8)
    axes.set_title("answers, shaded by share of the images with or without", fontsize=9)
    if len(classes) > MOST_NAMES:
        return
    axes.set_yticks(range(len(classes)), [_short(c) for c in classes])
    for (i, j), n in np.ndenumerate(counts):
        axes.text(
            j, i, f"{n:,}", ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black", fontsize=8
        )


def _draw_curves(axes: Axes, rows: Iterable[Row], keys: tuple[str, str], classes: Sequence[str]) -> None:
    """Draw the mean over the repeats of each class, and thinly each repeat where there is one curve, of two classes."""
    curves = list(_curves(rows, keys))
    alone = len(classes) == 2 and len({of for of, _, _ in curves}) == 1
    for c in [name for name in classes if any(name == of for of, _, _ in curves)][:MOST_LINES]:
        mine = [(x, y) for of, x, y in curves if of == c]
        for x, y in mine if alone else ():
            axes.plot(x, y, color="tab:blue", alpha=0.35, linewidth=0.8)
        axes.plot(mine[0][0], np.mean([y for _, y in mine], axis=0), linewidth=1.6, label=_short(c))
    if keys[0] == "fpr":
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel=_AXIS_NAMES[keys[0]], ylabel=_AXIS_NAMES[keys[1]], xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_aspect("equal")
    title = "mean over the repeats, and each repeat" if alone else "mean over the repeats"
    many = f", the first {MOST_LINES} classes" if len(classes) > max(MOST_LINES, 2) else ""
    axes.set_title(title + many, fontsize=9)
    if curves:
        axes.legend(loc="lower right" if keys[0] == "fpr" else "lower left", fontsize=8)


def _curves(rows: Iterable[Row], keys: tuple[str, str]) -> Iterator[tuple[str, Floats, Floats]]:
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows:
        points.setdefault((row["class"], row["repeat"]), []).append((row[keys[0]], row[keys[1]]))
    for (name, _), path in points.items():
        x, y = np.array(path).T
        yield name, x, y


def _draw_reliability(axes: Axes, rows: Sequence[Row]) -> None:
    images = np.array([row["images"] for row in rows])
    confidence, accuracy = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    axes.plot(confidence, accuracy, color="tab:blue", linewidth=1)
    axes.scatter(confidence, accuracy, s=10 + 140 * images / images.max(), color="tab:blue", alpha=0.8)
    axes.set(xlabel="probability of the predicted class", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_aspect("equal")
    axes.set_title("on the line, confidence is what comes true;\nthe larger a dot, the more images", fontsize=9)


def _short(name: str, length: int = 28) -> str:
    name = printable(name)
    name = name if len(name) <= length else f"{name[: length - 1]}…"
    return name.replace("$", r"\$")  # between two of them matplotlib reads mathematics
