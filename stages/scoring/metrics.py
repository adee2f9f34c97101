"""The figures of a run: what was predicted for the test images, and how good that is.

Every figure is worked out for many weightings of the images at once, so that the bootstrap of intervals.py needs one
pass over sorted scores and not two thousand; the figure itself is the case where every image has weight one.

A figure is worked out for each repeat alone and then averaged over the repeats: scores of different models are never
ranked against each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FIGURES = ("accuracy", "balanced_accuracy", "f1", "auc", "average_precision", "log_loss", "ece")
"""accuracy           share of images whose most probable class is the true one
balanced_accuracy  mean over the classes of their recall
f1                 mean over the classes of the harmonic mean of precision and recall (macro F1)
auc                probability that an image of a class is ranked above one of another, one class against the rest,
                   mean over the classes
average_precision  sum over the thresholds of precision times the step in recall; of two classes that of the last one,
                   of more the mean over the classes
log_loss           mean of -log(probability of the true class), in nats
ece                expected calibration error: the probabilities of the predicted classes are put into 15 bins of equal
                   width, and the distance of mean probability and accuracy in the bins is averaged by the images in
                   them (Guo, Pleiss, Sun and Weinberger, ICML 2017, arXiv:1706.04599, equation 3)"""
LABEL_FIGURES = (*FIGURES, "micro_f1")
"""The same where images may have several labels, each of which is predicted from a probability of one half on:
accuracy           share of right answers, over all images and labels (1 - Hamming loss)
balanced_accuracy  mean over the labels of the mean of recall with the label and without it
f1, auc, average_precision   means over the labels: macro F1, mean average precision
log_loss           mean over images and labels of the logistic loss, in nats
ece                of all answers, by the probability of the answer
micro_f1           harmonic mean of precision and recall, all labels counted together"""
CLASS_FIGURES = ("precision", "recall", "f1", "auc")
"""The figures of one class against the rest; of several labels average_precision, too."""

CALIBRATION_BINS = 15
LEAST_PRESENT = 0.5
"""Probability from which on one of several labels is predicted."""
COLUMNS, ROWS, SCORES = 16, 4096, 2048
"""Classes, images and scores worked on at a time."""
SMALLEST_PROBABILITY = float(np.finfo(np.float32).eps)
"""A class that was given probability 0 and is true would cost infinitely much; float32 cannot tell 1 from 1 - this."""


@dataclass(frozen=True)
class Outcomes:
    """What a run predicted for test images: n rows, one for each image and each repeat that tests it.

    `groups` is None where every image stands for itself. A sample belongs to the same group in all repeats.
    """

    classes: list[str]
    samples: list[str]
    repeats: Integers  # (n,) the repeat whose model predicted
    groups: list[str] | None
    truth: Integers  # (n,) index of the true class; of several labels (n, classes), 1 for those that it has
    probabilities: Floats  # (n, classes)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def multi_label(self) -> bool:
        """Whether images may have several labels, or none."""
        return self.truth.ndim == 2

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of the figures."""
        return LABEL_FIGURES if self.multi_label else FIGURES

    @property
    def ranked(self) -> list[int]:
        """The classes by whose probabilities images are ranked: of two classes the second says all."""
        return [1] if len(self.classes) == 2 and not self.multi_label else list(range(len(self.classes)))

    def positive(self, number: int) -> NDArray[np.bool_]:
        """Return (n,) which images are of a class."""
        return self.truth[:, number] > 0 if self.multi_label else self.truth == number

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """Which answers are right: (n,), or (n, classes) of several labels."""
        if self.multi_label:
            right: NDArray[np.bool_] = (self.probabilities >= LEAST_PRESENT) == (self.truth > 0)
        else:
            right = self.probabilities.argmax(axis=1) == self.truth
        return right

    @cached_property
    def confidence(self) -> Floats:
        """The probability of each answer: (n,), or (n, classes) of several labels."""
        if self.multi_label:
            return np.maximum(self.probabilities, 1 - self.probabilities)
        highest: Floats = self.probabilities.max(axis=1)
        return highest

    @cached_property
    def unit_names(self) -> list[str]:
        """The group of each row, or its sample: what was drawn by chance, and is drawn again by the bootstrap."""
        return self.samples if self.groups is None else self.groups

    @cached_property
    def units(self) -> tuple[list[str], Integers]:
        """The distinct units in order, and the index of each row's unit."""
        names = sorted(set(self.unit_names))
        index = {name: i for i, name in enumerate(names)}
        return names, np.array([index[name] for name in self.unit_names], dtype=np.int64)

    @cached_property
    def repeat_numbers(self) -> list[int]:
        """The repeats that have rows, in order."""
        return [int(r) for r in np.unique(self.repeats)]

    def select(self, rows: NDArray[np.bool_]) -> Outcomes:
        """Return some of the rows."""
        index = np.flatnonzero(rows)
        if len(index) == len(self):
            return self
        return Outcomes(
            classes=self.classes,
            samples=[self.samples[i] for i in index],
            repeats=self.repeats[index],
            groups=None if self.groups is None else [self.groups[i] for i in index],
            truth=self.truth[index],
            probabilities=self.probabilities[index],
        )

    def of_repeats(self, repeats: Sequence[int]) -> Outcomes:
        """Return the rows of some repeats."""
        return self.select(np.isin(self.repeats, list(repeats)))

    def by_repeat(self) -> Iterator[tuple[Integers, Scores | LabelScores]]:
        """Yield for each repeat the indices of its rows, and its scores ready to be weighted, a weight for each row."""
        for repeat in self.repeat_numbers:
            rows = np.flatnonzero(self.repeats == repeat)
            yield rows, self.scores(rows)

    def scores(self, rows: Integers, units: Integers | None = None) -> Scores | LabelScores:
        """Return the scores of some rows; units : which of the weights counts for a row, see `Scores`."""
        kind = LabelScores if self.multi_label else Scores
        return kind(self.truth[rows], self.probabilities[rows], units)


class _Weighed(ABC):
    """Predictions of one model, counted once so that each weighting of the images is cheap.

    truth : (n,), or of several labels (n, k)
    probabilities : (n, k)
    units : (n,) which of the weights counts for an image; each has its own if not given
    """

    def __init__(self, truth: Integers, probabilities: Floats, units: Integers | None = None) -> None:
        self.count, self.classes = probabilities.shape
        self._truth, self._probabilities = truth, probabilities
        self._units = np.arange(self.count) if units is None else units
        self._addends = self._counts()

    def figures(self, weights: Floats, ranks: bool = True) -> dict[str, Floats]:
        """Return each of FIGURES, or LABEL_FIGURES, as (m,), and those of classes as "class_<figure>" (m, classes).

        Of classes these are CLASS_FIGURES, and of several labels average_precision, too.

        weights : (m, units), not negative; NaN where a figure is undefined under them, as AUC is with one class.
        ranks : whether to work out auc and average_precision, which take the time
        """
        values = self._counted(weights @ self._addends)
        return values | (self._areas(*_areas(self._rankings, weights)) if ranks else {})

    def left_out(self, units: int, ranks: bool = True) -> dict[str, Floats]:
        """Return the figures of all images, and then those without each of the first `units` units: 1 + units rows."""
        without = np.concatenate([np.ones((1, units)), 1.0 - np.eye(units)])[:, : len(self._addends)]
        values = self._counted(without @ self._addends)
        if ranks:
            areas = [_areas_left_out(*class_, self._units, units) for class_ in self._one_against_the_rest()]
            auc, precision = np.stack(areas, axis=-1)
            values |= self._areas(auc, precision)
        return values

    @cached_property
    def _rankings(self) -> list[_Ranking]:
        return [_Ranking(*class_, self._units) for class_ in self._one_against_the_rest()]

    def _one_against_the_rest(self) -> Iterator[tuple[Floats, NDArray[np.bool_]]]:
        """Yield of each class that images are ranked by its probabilities, and which images are of it."""
        for block in self._ranked_by:
            scores = np.ascontiguousarray(self._probabilities[:, block].T)  # column by column takes five times as long
            for number, score in zip(range(self.classes)[block], scores, strict=True):
                yield score, self._truth == number if self._truth.ndim == 1 else self._truth[:, number] > 0

    @property
    def _ranked_by(self) -> Iterator[slice]:
        return (slice(start, start + COLUMNS) for start in range(0, self.classes, COLUMNS))

    @abstractmethod
    def _counts(self) -> Floats:
        """Return (units, columns): what a weighting of the units adds up."""

    @abstractmethod
    def _counted(self, sums: Floats) -> dict[str, Floats]:
        """Return the figures that need no ranking, from (m, columns)."""

    @abstractmethod
    def _areas(self, auc: Floats, precision: Floats) -> dict[str, Floats]:
        """Return the figures of rankings, from the areas of those classes that images are ranked by."""


class Scores(_Weighed):
    """The same of images of one class each; truth : (n,) indices of the true classes."""

    @property
    def _ranked_by(self) -> Iterator[slice]:
        # Of two classes the second says all: ranking by the first is the same ranking backwards.
        return iter([slice(1, 2)]) if self.classes == 2 else super()._ranked_by

    def _counts(self) -> Floats:
        truth, k = self._truth, self.classes
        predicted, rows = self._probabilities.argmax(axis=1), np.arange(self.count)
        confidence, right = self._probabilities[rows, predicted], predicted == truth
        lost = -np.log(np.maximum(self._probabilities[rows, truth], SMALLEST_PROBABILITY))
        columns = [
            (truth, np.ones(self.count), k),
            (predicted, np.ones(self.count), k),
            (truth, right, k),
            (np.zeros(self.count, np.int64), lost, 1),
            (calibration_bin(confidence), right - confidence, CALIBRATION_BINS),
        ]
        return np.concatenate([_sums(self._units, *of) for of in columns], axis=1)

    def _counted(self, sums: Floats) -> dict[str, Floats]:
        k = self.classes
        support, predicted, hits = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k]
        total = support.sum(axis=1)
        recall = _ratio(hits, support)
        f1 = _ratio(2 * hits, support + predicted)
        return {
            "accuracy": _ratio(hits.sum(axis=1), total),
            "balanced_accuracy": _mean(recall),
            "f1": _mean(f1),
            "log_loss": _ratio(sums[:, 3 * k], total),
            "ece": _ratio(np.abs(sums[:, 3 * k + 1 :]).sum(axis=1), total),
            "class_precision": _ratio(hits, predicted),
            "class_recall": recall,
            "class_f1": f1,
        }

    def _areas(self, auc: Floats, precision: Floats) -> dict[str, Floats]:
        return {
            "auc": _mean(auc),
            "average_precision": _mean(precision),
            "class_auc": np.repeat(auc, 2, axis=1) if self.classes == 2 else auc,
        }


class LabelScores(_Weighed):
    """The same of images that may have several labels, with LABEL_FIGURES.

    truth : (n, k) of 0 and 1; probabilities : (n, k) of each label by itself
    """

    def _counts(self) -> Floats:
        sums = np.zeros((int(self._units.max()) + 1, 3 * self.classes + 2 + CALIBRATION_BINS))
        for start in range(0, self.count, ROWS):
            rows = slice(start, start + ROWS)
            np.add.at(sums, self._units[rows], self._of_rows(self._truth[rows] > 0, self._probabilities[rows]))
        return sums

    def _of_rows(self, has: NDArray[np.bool_], probabilities: Floats) -> Floats:
        count = len(has)
        predicted = probabilities >= LEAST_PRESENT
        own = np.where(has, probabilities, 1 - probabilities)
        lost = -np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean(axis=1)
        confidence = np.maximum(probabilities, 1 - probabilities)
        gap = np.zeros((count, CALIBRATION_BINS))
        rows = np.repeat(np.arange(count), self.classes)
        np.add.at(gap, (rows, calibration_bin(confidence).ravel()), ((has == predicted) - confidence).ravel())
        columns = [has, predicted, has & predicted, np.ones((count, 1)), lost[:, None], gap / self.classes]
        return np.concatenate(columns, axis=1).astype(np.float64)

    def _counted(self, sums: Floats) -> dict[str, Floats]:
        k = self.classes
        support, predicted, hits, total = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k], sums[:, 3 * k]
        absent = total[:, None] - support
        neither = absent - predicted + hits
        f1 = _ratio(2 * hits, support + predicted)
        return {
            "accuracy": _ratio((hits + neither).mean(axis=1), total),
            "balanced_accuracy": _mean((_ratio(hits, support) + _ratio(neither, absent)) / 2),
            "f1": _mean(f1),
            "micro_f1": _ratio(2 * hits.sum(axis=1), (support + predicted).sum(axis=1)),
            "log_loss": _ratio(sums[:, 3 * k + 1], total),
            "ece": _ratio(np.abs(sums[:, 3 * k + 2 :]).sum(axis=1), total),
            "class_precision": _ratio(hits, predicted),
            "class_recall": _ratio(hits, support),
            "class_f1": f1,
        }

    def _areas(self, auc: Floats, precision: Floats) -> dict[str, Floats]:
        return {
            "auc": _mean(auc),
            "average_precision": _mean(precision),
            "class_auc": auc,
            "class_average_precision": precision,
        }


class _Ranking:
    """One class against the rest: the images in descending order of the probability of that class."""

    def __init__(self, score: Floats, positive: NDArray[np.bool_], units: Integers) -> None:
        order = np.argsort(-score, kind="stable")
        descending = score[order]
        self._positive = positive[order].astype(np.float64)
        self._order = units[order]
        ends = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
        self._ends = None if len(ends) == len(score) else ends

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the area under the ROC curve and the average precision, each (m,); NaN where undefined.

        The curves have a corner where the score changes: images of equal score come in together.
        """
        all_step = np.take(weights, self._order, axis=1)
        step = all_step * self._positive
        found = np.cumsum(step, axis=1)  # positives above each threshold
        passed = np.cumsum(all_step, axis=1)  # all images above it
        if self._ends is not None:
            found, passed = found[:, self._ends], passed[:, self._ends]
            step = np.diff(found, axis=1, prepend=0.0)
            all_step = np.diff(passed, axis=1, prepend=0.0)
        positives, negatives = found[:, -1].copy(), passed[:, -1] - found[:, -1]  # found is written over below
        # A false step is all_step - step, and a tie counts half: the trapezoid below it ends at found - step / 2.
        under_roc = _dot(all_step, found) - _dot(step, found) - (_dot(all_step, step) - _dot(step, step)) / 2
        np.maximum(passed, np.finfo(np.float64).tiny, out=passed)
        np.divide(found, passed, out=found)
        return _ratio(under_roc, positives * negatives), _ratio(_dot(step, found), positives)


def _areas(rankings: Sequence[_Ranking], weights: Floats) -> tuple[Floats, Floats]:
    """Return AUC and average precision of each ranking, (m, rankings)."""
    auc, precision = zip(*(ranking.areas(weights) for ranking in rankings), strict=True)
    return np.stack(auc, axis=1), np.stack(precision, axis=1)


def _areas_left_out(score: Floats, positive: NDArray[np.bool_], units: Integers, count: int) -> tuple[Floats, Floats]:
    """Return the areas of `_Ranking.areas` of all images, and then without each unit: (1 + count,), NaN if undefined.

    Both are sums over the images of the class, of what lies above them. So it is enough to count by unit what lies
    between the scores of those few, and no image is looked at once for each unit.
    """
    scores = np.unique(-score[positive])  # the highest first
    place = np.searchsorted(scores, -score)  # which of them an image has, or comes before
    tied = ~positive & (place < len(scores))
    tied[tied] = scores[place[tied]] == -score[tied]
    kinds = positive, tied, ~positive & ~tied
    positives, negatives = (
        _without(np.bincount(units[of], minlength=count).astype(np.float64)) for of in (positive, ~positive)
    )
    found, others, under_roc, precision = np.zeros((4, 1 + count))  # of the class and others, up to and with a score
    for start in range(0, len(scores), SCORES):
        size = min(SCORES, len(scores) - start)
        here = (place >= start) & (place < start + size)
        step, level, between = (
            _without(_sums(place[here & of] - start, units[here & of], None, count, size)) for of in kinds
        )
        all_found = found + np.cumsum(step, axis=0)
        all_others = others + np.cumsum(between + level, axis=0)
        under_roc += (step * (negatives - all_others + level / 2)).sum(axis=0)
        precision += (step * all_found / np.maximum(all_found + all_others, 1.0)).sum(axis=0)
        found, others = all_found[-1], all_others[-1]
    return _ratio(under_roc, positives * negatives), _ratio(precision, positives)


def _without(counts: Floats) -> Floats:
    """Return the sum over the last axis, and then what it is without each place: (…, count) -> (…, 1 + count)."""
    total = counts.sum(axis=-1, keepdims=True)
    return np.concatenate([total, total - counts], axis=-1)


def _dot(a: Floats, b: Floats) -> Floats:
    """Return the scalar product of each row of a with that of b."""
    products: Floats = np.einsum("mn,mn->m", a, b)
    return products


def calibration_bin(confidence: Floats) -> Integers:
    """Return for each confidence in [0, 1] its bin of CALIBRATION_BINS; a bin holds its upper edge, as in Guo et al."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def _sums(rows: Integers, columns: Integers, values: Floats | None, width: int, height: int | None = None) -> Floats:
    """Add values up by row and column: (height, width); counts where there are none."""
    height = int(rows.max()) + 1 if height is None else height
    sums = np.bincount(rows * width + columns, values, minlength=height * width).reshape(height, width)
    return sums.astype(np.float64, copy=False)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where there is nothing to divide by."""
    result = np.full_like(numerator, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean(values: Floats) -> Floats:
    """Return the mean over the classes for which the figure is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
