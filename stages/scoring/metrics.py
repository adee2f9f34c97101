"""The figures of a run: what was predicted for the test images, and how good that is.

Every figure is worked out for many weightings of the images at once, so that the bootstrap of intervals.py needs one
pass over sorted scores and not two thousand; the figure itself is the case where every image has weight one.

A figure is worked out for each repeat alone and then averaged over the repeats: scores of different models are never
ranked against each other.
"""

from __future__ import annotations

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


class Scores:
    """The predictions of one model, sorted and counted once so that each weighting of the images is cheap.

    truth : (n,) indices of the true classes
    probabilities : (n, k)
    units : (n,) which of the weights counts for an image; each has its own if not given
    """

    def __init__(self, truth: Integers, probabilities: Floats, units: Integers | None = None) -> None:
        self.count, self.classes = probabilities.shape
        predicted = probabilities.argmax(axis=1)
        confidence = probabilities[np.arange(self.count), predicted]
        right = predicted == truth
        lost = -np.log(np.maximum(probabilities[np.arange(self.count), truth], SMALLEST_PROBABILITY))
        gap = np.zeros((self.count, CALIBRATION_BINS))
        gap[np.arange(self.count), calibration_bin(confidence)] = right - confidence
        one_hot = np.eye(self.classes)
        addends = np.concatenate(
            [one_hot[truth], one_hot[predicted], one_hot[truth] * right[:, None], lost[:, None], gap], axis=1
        )
        self._addends = addends if units is None else _sums(addends, units)
        # Of two classes the second says all: ranking by the first is the same ranking backwards.
        ranked = [1] if self.classes == 2 else range(self.classes)
        self._rankings = [_Ranking(probabilities[:, c], truth == c, units) for c in ranked]

    def figures(self, weights: Floats, ranks: bool = True) -> dict[str, Floats]:
        """Return each of FIGURES as (m,), and each of CLASS_FIGURES as "class_<figure>" (m, classes).

        weights : (m, units), not negative; NaN where a figure is undefined under them, as AUC is with one class.
        ranks : whether to work out auc and average_precision, which take the time
        """
        k = self.classes
        sums = weights @ self._addends
        support, predicted, hits = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k]
        total = support.sum(axis=1)
        recall = _ratio(hits, support)
        f1 = _ratio(2 * hits, support + predicted)
        values = {
            "accuracy": _ratio(hits.sum(axis=1), total),
            "balanced_accuracy": _mean(recall),
            "f1": _mean(f1),
            "log_loss": _ratio(sums[:, 3 * k], total),
            "ece": _ratio(np.abs(sums[:, 3 * k + 1 :]).sum(axis=1), total),
            "class_precision": _ratio(hits, predicted),
            "class_recall": recall,
            "class_f1": f1,
        }
        if ranks:
            auc, precision = _areas(self._rankings, weights)
            values["auc"], values["average_precision"] = _mean(auc), _mean(precision)
            values["class_auc"] = np.repeat(auc, 2, axis=1) if k == 2 else auc
        return values


class LabelScores:
    """The same for images that may have several labels.

    truth : (n, k) of 0 and 1; probabilities : (n, k) of each label by itself; units as above
    """

    def __init__(self, truth: Integers, probabilities: Floats, units: Integers | None = None) -> None:
        count, self.labels = probabilities.shape
        has, predicted = truth > 0, probabilities >= LEAST_PRESENT
        own = np.where(has, probabilities, 1 - probabilities)
        lost = -np.log(np.maximum(own, SMALLEST_PROBABILITY)).mean(axis=1)
        confidence = np.maximum(probabilities, 1 - probabilities)
        gap = np.zeros((count, CALIBRATION_BINS))
        rows = np.repeat(np.arange(count), self.labels)
        np.add.at(gap, (rows, calibration_bin(confidence).ravel()), ((has == predicted) - confidence).ravel())
        columns = [has, predicted, has & predicted, np.ones((count, 1)), lost[:, None], gap / self.labels]
        addends = np.concatenate(columns, axis=1).astype(np.float64)
        self._addends = addends if units is None else _sums(addends, units)
        self._rankings = [_Ranking(probabilities[:, c], has[:, c], units) for c in range(self.labels)]

    def figures(self, weights: Floats, ranks: bool = True) -> dict[str, Floats]:
        """Return each of LABEL_FIGURES as (m,), and of each label its figures as "class_<figure>" (m, labels)."""
        k = self.labels
        sums = weights @ self._addends
        support, predicted, hits, total = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k : 3 * k], sums[:, 3 * k]
        absent = total[:, None] - support
        neither = absent - predicted + hits
        f1 = _ratio(2 * hits, support + predicted)
        values = {
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
        if ranks:
            values["class_auc"], values["class_average_precision"] = _areas(self._rankings, weights)
            values["auc"], values["average_precision"] = (
                _mean(values[f"class_{figure}"]) for figure in ("auc", "average_precision")
            )
        return values


class _Ranking:
    """One class against the rest: the images in descending order of the probability of that class."""

    def __init__(self, score: Floats, positive: NDArray[np.bool_], units: Integers | None) -> None:
        order = np.argsort(-score, kind="stable")
        descending = score[order]
        self._positive = positive[order].astype(np.float64)
        self._order = order if units is None else units[order]
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


def _dot(a: Floats, b: Floats) -> Floats:
    """Return the scalar product of each row of a with that of b."""
    products: Floats = np.einsum("mn,mn->m", a, b)
    return products


def calibration_bin(confidence: Floats) -> Integers:
    """Return for each confidence in [0, 1] its bin of CALIBRATION_BINS; a bin holds its upper edge, as in Guo et al."""
    return np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(np.int64) - 1, 0, CALIBRATION_BINS - 1)


def _sums(addends: Floats, units: Integers) -> Floats:
    """Return the sum over the images of each unit: (n, columns) -> (units, columns)."""
    sums = np.zeros((int(units.max()) + 1, addends.shape[1]))
    np.add.at(sums, units, addends)
    return sums


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; NaN where there is nothing to divide by."""
    result = np.full_like(numerator, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean(values: Floats) -> Floats:
    """Return the mean over the classes for which the figure is defined."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
