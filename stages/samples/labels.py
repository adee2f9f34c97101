"""Classes from a column of the source: words or numbers as they are, or a number cut into ranges by thresholds."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.params import Label


SUM_TOLERANCE = 0.01
"""How far from 1 the sum of an image's probabilities may be, as where a table rounds them."""


@dataclass(frozen=True)
class Labels:
    """The classes in order, and each image's.

    classes : sorted names; for numbers ascending; of two the last is the positive one.
    index : (images,) int64, a class of each image; -1 where the source gives none.
    soft : (images, classes) the probability of each class, NaN where the source gives none; None without any
    """

    classes: list[str]
    index: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """Return the labels of some images."""
        return Labels(self.classes, self.index[rows], None if self.soft is None else self.soft[rows])

    def targets(self) -> NDArray[np.float32]:
        """Return the labels as (images, classes): 1 for the image's class, else 0; or its probability of each."""
        hard = np.eye(len(self.classes), dtype=np.float32)[self.index]
        return hard if self.soft is None else np.where(np.isnan(self.soft).any(axis=1, keepdims=True), hard, self.soft)


def make_labels(source: pa.Table, label: Label, where: str) -> Labels:
    """Make classes of a column's values, and their probabilities of others where the entry names them.

    where : the entry in params.yaml, for messages ("datasets.cells").
    Raises UserError when a threshold meets words, when fewer than two classes come out, and for probabilities that are
    none or of other classes.
    """
    labels = _make_labels(source[label.column], label, where)
    if label.soft is None:
        return labels
    place = f"params.yaml: {where}.label.soft"
    if isinstance(label.soft, dict):
        if sorted(label.soft) != sorted(labels.classes):
            raise UserError(f"{place} names {', '.join(label.soft)}; the classes are {', '.join(labels.classes)}")
        columns = [_probabilities(source[name], name, place) for name in map(label.soft.__getitem__, labels.classes)]
        soft = np.stack(columns, axis=1)
        wrong = np.flatnonzero(np.abs(soft.sum(axis=1) - 1) > SUM_TOLERANCE)
        if len(wrong):
            total, sample = soft.sum(axis=1)[wrong[0]], source["sample"][int(wrong[0])]
            raise UserError(f"{place}: the probabilities of {sample} have the sum {total:g}, and not 1")
        return Labels(labels.classes, labels.index, soft / soft.sum(axis=1, keepdims=True))
    if len(labels.classes) != 2:
        raise UserError(f"{place} needs two classes, here are {len(labels.classes)}; name a column for each class")
    second = _probabilities(source[label.soft], label.soft, place)
    return Labels(labels.classes, labels.index, np.stack([1 - second, second], axis=1))


def _probabilities(column: pa.ChunkedArray, name: str, place: str) -> NDArray[np.float32]:
    values = [math.nan if _is_absent(value) else value for value in column.to_pylist()]
    wrong = next((v for v in values if not isinstance(v, int | float) or not (math.isnan(v) or 0 <= v <= 1)), None)
    if wrong is not None:
        raise UserError(f"{place}: the column {name} holds {wrong!r}, which is no probability")
    return np.array(values, np.float32)


def _make_labels(column: pa.ChunkedArray, label: Label, where: str) -> Labels:
    values = [None if _is_absent(value) else value for value in column.to_pylist()]
    if label.thresholds:
        labels = _cut(values, label.column, label.thresholds, where)
    else:
        present = sorted({value for value in values if value is not None})
        place = {value: index for index, value in enumerate(present)}
        labels = Labels(names(present), np.array([place.get(value, -1) for value in values], np.int64))
    if len(labels.classes) < 2:
        found = f"only the class {labels.classes[0]}" if labels.classes else "no class"
        raise UserError(f"params.yaml: {where}.label: the column {label.column} makes {found}; it takes two")
    return labels


def _is_absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _cut(values: Sequence[Any], column: str, thresholds: Sequence[float], where: str) -> Labels:
    """Make a class of each range between thresholds, the lower one included; a range without an image is no class."""
    words = next((value for value in values if not isinstance(value, int | float | None)), None)
    if words is not None:
        raise UserError(
            f"params.yaml: {where}.label.threshold is {', '.join(f'{t:g}' for t in thresholds)}, but the column "
            f"{column} holds words such as {words!r}: leave the threshold out, or name a column of numbers"
        )
    ranges = np.array([-1 if value is None else bisect_right(thresholds, value) for value in values], np.int64)
    present = np.unique(ranges[ranges >= 0])
    index = np.where(ranges < 0, -1, np.searchsorted(present, ranges))
    return Labels([f"{column} {_range(thresholds, at)}" for at in present.tolist()], index)


def _range(thresholds: Sequence[float], at: int) -> str:
    if at == 0:
        return f"below {thresholds[0]:g}"
    if at == len(thresholds):
        return f"at least {thresholds[-1]:g}"
    return f"{thresholds[at - 1]:g} to {thresholds[at]:g}"


def names(values: Sequence[Any]) -> list[str]:
    """Return a name for each of some different values; numbers are shortened as long as they stay different.

    >>> names([0.0, 1 / 3, 1.0])
    ['0', '0.333333', '1']
    """
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else [str(value) for value in values]
