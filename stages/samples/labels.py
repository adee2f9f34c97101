"""Classes from a column of the source: words or numbers as they are, or a number cut into ranges by thresholds.

Or several labels of an image: a column of each, or several values in a cell.
"""

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
    index : (images,) int64, a class of each image; -1 where the source gives none. Where an image may have several
        labels, a number for each set of labels.
    soft : (images, classes) the probability of each class, NaN where the source gives none; None without any
    several : (images, classes) bool, the labels of each image; None where each has one class
    """

    classes: list[str]
    index: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None
    several: NDArray[np.bool_] | None = None

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """Return the labels of some images."""
        return Labels(
            self.classes,
            self.index[rows],
            None if self.soft is None else self.soft[rows],
            None if self.several is None else self.several[rows],
        )

    def having(self, number: int) -> NDArray[np.bool_]:
        """Return (images,) which have a class, or a label, by its number."""
        return self.index == number if self.several is None else self.several[:, number]

    @property
    def array(self) -> NDArray[np.int64]:
        """(images,) the class of each; of several labels (images, classes), 1 for those that it has."""
        return self.index if self.several is None else self.several.astype(np.int64)

    @property
    def counts(self) -> list[int]:
        """How many images have each class."""
        return [int(self.having(number).sum()) for number in range(len(self.classes))]

    def targets(self) -> NDArray[np.float32]:
        """Return the labels as (images, classes): 1 for what the image has, else 0; or its probability of each."""
        if self.several is not None:
            return self.several.astype(np.float32)
        hard = np.eye(len(self.classes), dtype=np.float32)[self.index]
        return hard if self.soft is None else np.where(np.isnan(self.soft).any(axis=1, keepdims=True), hard, self.soft)


def make_labels(source: pa.Table, label: Label, where: str) -> Labels:
    """Make classes of a column's values, and their probabilities of others where the entry names them.

    where : the entry in params.yaml, for messages ("datasets.cells").
    Raises UserError when a threshold meets words, when fewer than two classes come out, for probabilities that are
    none or of other classes, and for a label that no image has, or every one.
    """
    if label.multi_label:
        return _make_several(source, label, f"params.yaml: {where}.label")
    labels = _make_labels(source[label.columns[0]], label, where)
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


def read_weights(source: pa.Table, column: str, where: str) -> NDArray[np.float64]:
    """Return how much each image counts, 1 where the column is empty; raises UserError for what is no weight."""
    values = [1.0 if _is_absent(value) else value for value in source[column].to_pylist()]
    for value in values:
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UserError(f"params.yaml: {where}.weight: the column {column} holds {value!r}, which is no weight")
    return np.array(values, np.float64)


def _probabilities(column: pa.ChunkedArray, name: str, place: str) -> NDArray[np.float32]:
    values = [math.nan if _is_absent(value) else value for value in column.to_pylist()]
    wrong = next((v for v in values if not isinstance(v, int | float) or not (math.isnan(v) or 0 <= v <= 1)), None)
    if wrong is not None:
        raise UserError(f"{place}: the column {name} holds {wrong!r}, which is no probability")
    return np.array(values, np.float32)


def _make_labels(column: pa.ChunkedArray, label: Label, where: str) -> Labels:
    values = [None if _is_absent(value) else value for value in column.to_pylist()]
    name = label.columns[0]
    if label.thresholds:
        labels = _cut(values, name, label.thresholds, where)
    else:
        present = sorted({value for value in values if value is not None})
        place = {value: index for index, value in enumerate(present)}
        labels = Labels(names(present), np.array([place.get(value, -1) for value in values], np.int64))
    if len(labels.classes) < 2:
        found = f"only the class {labels.classes[0]}" if labels.classes else "no class"
        raise UserError(f"params.yaml: {where}.label: the column {name} makes {found}; it takes two")
    return labels


def _make_several(source: pa.Table, label: Label, place: str) -> Labels:
    """Make labels of which an image may have several; an image of which the source tells nothing has the index -1."""
    if label.separator is not None:
        cells = [_parts(value, label.separator) for value in source[label.columns[0]].to_pylist()]
        classes = sorted({name for cell in cells for name in cell})
        several = np.array([[name in cell for name in classes] for cell in cells], np.bool_).reshape(len(cells), -1)
        known = np.array([bool(cell) for cell in cells], np.bool_)
    else:
        classes = sorted(label.columns)
        columns = [_yes_or_no(source[name], name, label.thresholds, place) for name in classes]
        several = np.array([[value is True for value in column] for column in columns], np.bool_).T
        known = np.array([any(value is not None for value in row) for row in zip(*columns, strict=True)], np.bool_)
    if len(classes) < 2:
        raise UserError(f"{place}: the column {label.columns[0]} makes {len(classes)} labels; it takes two")
    for name, count in zip(classes, several.sum(axis=0), strict=True):
        if count in (0, known.sum()):
            which = "no image" if count == 0 else "every image"
            raise UserError(f"{place}: {which} has the label {name}: there is nothing to learn of it; leave it out")
    sets = np.unique(several, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return Labels(classes, np.where(known, sets, -1), several=several)


def _parts(cell: Any, separator: str) -> set[str]:
    """Return the labels in a cell; none where it is empty."""
    return set() if _is_absent(cell) else {part.strip() for part in str(cell).split(separator)} - {""}


ANSWERS = {1: True, 0: False, "1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}
"""What a column of one label may hold; a truth value is a number here, as in Python."""


def _yes_or_no(column: pa.ChunkedArray, name: str, thresholds: Sequence[float], place: str) -> list[bool | None]:
    """Return of each image whether it has a label; None where the source does not tell."""
    found: list[bool | None] = []
    for value in column.to_pylist():
        read = None if _is_absent(value) else value.strip().lower() if isinstance(value, str) else value
        if read is None:
            found.append(None)
        elif thresholds:
            if not isinstance(read, int | float):
                raise UserError(f"{place}.threshold: the column {name} holds words such as {value!r}")
            found.append(read >= thresholds[0])
        elif read in ANSWERS:
            found.append(ANSWERS[read])
        else:
            hint = "; name a threshold from which on an image has it" if isinstance(read, int | float) else ""
            raise UserError(f"{place}: the column {name} holds {value!r}, which is neither 0 nor 1{hint}")
    return found


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
